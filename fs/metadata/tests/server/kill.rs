//! A server process that is killed: what was answered is there when it comes back.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};

use atoll_core::commands::Outcome;
use atoll_proto::queries;
use prometheus_client::registry::Registry;

use crate::client::{self, Client, config, create, inline, write};

const DIR: &str = "ATOLL_TEST_METADATA_DIR";

/// Not a test of its own: the process that the test below kills.
#[tokio::test(flavor = "multi_thread")]
async fn serves_until_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let server = atoll_metadata::MetadataServer::start(config(Path::new(&dir)), &mut Registry::default())
        .await
        .unwrap();
    server.bootstrap(client::volume()).await.unwrap();
    println!("listening at {}", server.address());
    std::future::pending::<()>().await;
}

struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn spawn(dir: &Path) -> Server {
        let mut process = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::serves_until_killed", "--nocapture"])
            .env(DIR, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| line.split_once("listening at ").map(|(_, address)| address.to_owned()))
            .expect("the server says where it listens");
        Server { process, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL: nothing is flushed, nothing is said.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut session: Option<Client> = None;
    let mut files = 0;
    for round in 0..4_u64 {
        let server = Server::spawn(dir.path());
        let mut client = match session.take() {
            None => {
                let mut client = Client::without_session(&server.address).await;
                let op = atoll_core::commands::ops::OpenSession {
                    client: "test".into(),
                    incarnation: 1,
                    supersedes: None,
                };
                let Outcome::Session(id, _) = client.run(op).await else { panic!() };
                client.session = id;
                client.sequence = 0;
                client
            }
            Some(mut client) => {
                client.reconnect(&server.address).await;
                client
            }
        };
        for number in 0..files {
            let attributes = client.lookup(&format!("f{number}")).await.unwrap();
            assert_eq!(attributes.size, 1 + number % 5000, "round {round}, file {number}");
            client.ask(queries::Open { ino: attributes.ino, segments: 1 }).await;
        }
        let mut last = None;
        for number in files..files + 150 {
            let ino = client.create(&format!("f{number}")).await;
            let size = 1 + number % 5000;
            let command = client.command(write(ino, 0, size, inline(vec![number as u8; size as usize])));
            let outcome = client.send(&command).await.unwrap();
            assert!(matches!(&outcome, Outcome::Inode(attributes) if attributes.size == size));
            last = Some((command, outcome));
        }
        files += 150;
        drop(server);
        // The next one still knows what it answered last.
        let server = Server::spawn(dir.path());
        client.reconnect(&server.address).await;
        let (command, outcome) = last.unwrap();
        assert_eq!(client.send(&command).await.unwrap(), outcome);
        let command = client.command(create(&format!("f{}", files - 1)));
        assert_eq!(
            client.send(&command).await.unwrap(),
            Outcome::Refused(atoll_core::error::FsError::Exists)
        );
        session = Some(client);
    }
}
