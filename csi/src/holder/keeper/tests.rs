use std::os::fd::AsRawFd;

use super::*;
use crate::holder::link;

/// A mount host's end of a connection, which says what it is told to.
struct Host(PacketSocket);

impl Host {
    fn connect(folder: &Path, started_ms: u64, leading: bool) -> Host {
        let host = Host(PacketSocket::connect(&folder.join(SOCKET)).unwrap());
        host.0.send(&ToHolder::Hello { started_ms, leading }).unwrap();
        host
    }

    fn hears(&self) -> FromHolder {
        self.0.receive(Instant::now() + Duration::from_secs(60)).unwrap()
    }

    fn keep(&self, volume: &str, record: &str, descriptors: usize, sent: &[&File]) -> FromHolder {
        let (volume, record) = (volume.to_owned(), record.to_owned());
        let sent: Vec<_> = sent.iter().map(|file| file.as_fd()).collect();
        self.0.send_with(&ToHolder::Keep { volume, record, descriptors }, &sent).unwrap();
        self.hears()
    }
}

fn turn(yours: bool, others: usize) -> FromHolder {
    FromHolder::Turn { yours, others }
}

fn inode(file: &impl AsRawFd) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    (found.dev(), found.ino())
}

#[test]
fn what_is_kept_is_given_to_who_leads_next_whatever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::start(folder.path()).unwrap();
    assert_eq!(link::has(folder.path(), "v").unwrap(), Some(false));
    let files: Vec<File> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
    let old = Host::connect(folder.path(), 100, true);
    assert_eq!(old.hears(), turn(true, 0));
    let kept = |volume: &str| FromHolder::Kept { volume: volume.to_owned() };
    assert_eq!(old.keep("v", "a record of a later release", 2, &[&files[0], &files[1]]), kept("v"));
    assert_eq!(old.keep("w", "", 1, &[&files[0]]), kept("w"));
    // In the place of what was there before.
    assert_eq!(old.keep("v", "another", 1, &[&files[2]]), kept("v"));
    assert!(matches!(old.keep("x", "", 2, &[&files[0]]), FromHolder::Refused { .. }), "one is missing");
    old.0.send(&ToHolder::Forget { volume: "w".to_owned() }).unwrap();

    let new = Host::connect(folder.path(), 200, false);
    assert_eq!(new.hears(), turn(true, 1));
    assert_eq!(old.hears(), turn(false, 1));
    old.0.send(&ToHolder::Yielded).unwrap();
    assert_eq!(old.hears(), FromHolder::Left);
    new.0.send(&ToHolder::Take { lead: true }).unwrap();
    let (message, descriptors): (FromHolder, _) = new.0.receive_with().unwrap();
    let mount = FromHolder::Mount { volume: "v".to_owned(), record: "another".to_owned(), descriptors: 1 };
    assert_eq!(message, mount);
    assert_eq!(inode(&descriptors[0]), inode(&files[2]));
    assert_eq!(new.hears(), FromHolder::Taken { mounts: 1 });
    // It is kept all the same.
    drop((new, descriptors));
    assert_eq!(old.hears(), turn(true, 0));
    assert_eq!(keeper.volumes(), ["v"]);
    assert_eq!(link::has(folder.path(), "v").unwrap(), Some(true));
}

#[test]
fn what_it_does_not_understand_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::start(folder.path()).unwrap();
    let host = Host::connect(folder.path(), 100, true);
    assert_eq!(host.hears(), turn(true, 0));
    for later in ["{\"say\": \"melt\", \"now\": true}", "{\"say\": \"keep\"}", "GET / HTTP/1.1"] {
        host.0.send_bytes(later.as_bytes()).unwrap();
        assert_eq!(host.hears(), FromHolder::Unknown, "{later}");
    }
    assert!(keeper.volumes().is_empty());
}

#[test]
fn it_ends_when_somebody_else_has_the_mounts() {
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::start(folder.path()).unwrap();
    assert_eq!(keeper.stop(Duration::ZERO), 0, "there are none");
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::start(folder.path()).unwrap();
    let file = tempfile::tempfile().unwrap();
    let leader = Host::connect(folder.path(), 100, true);
    leader.hears();
    leader.keep("v", "", 1, &[&file]);
    leader.0.send(&ToHolder::Yielded).unwrap();
    assert_eq!(leader.hears(), FromHolder::Left);
    assert_eq!(keeper.stop(Duration::ZERO), 1, "nobody has it");
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::start(folder.path()).unwrap();
    let leader = Host::connect(folder.path(), 100, true);
    leader.hears();
    leader.keep("v", "", 1, &[&file]);
    assert_eq!(keeper.stop(Duration::from_secs(60)), 0);
    leader.0.send(&ToHolder::Yielded).unwrap();
    let last = leader.0.receive::<FromHolder>(Instant::now() + Duration::from_secs(60));
    assert!(last.is_err(), "from then on it has to keep what it has: {last:?}");
}

#[test]
fn the_next_holder_waits_for_the_one_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = Keeper::start(folder.path()).unwrap();
    assert!(
        Flock::lock(File::open(folder.path().join(LOCK)).unwrap(), FlockArg::LockExclusiveNonblock).is_err()
    );
    assert_eq!(fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, FOLDER_MODE);
    drop(first);
}
