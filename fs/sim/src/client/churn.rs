//! Files that are made and removed at once, by several threads of a mount: each is an orphan for a moment, and none may stay.

use std::time::Duration;

use atoll_client::vfs::{Errno, Vfs, WriteFlags};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Checked, SimClient};
use crate::nodes::some_time;

/// Threads that do so together.
const THREADS: u32 = 4;

impl SimClient {
    /// Makes files and removes them, with and without having them open.
    pub(super) async fn churn(&mut self, random: &mut StdRng) -> Checked<()> {
        let first = self.next_value();
        let churning = (0..THREADS).map(|thread| {
            let random = StdRng::seed_from_u64(random.random());
            self.churn_alone(format!("churn-{first}-{thread}"), thread, random)
        });
        futures::future::try_join_all(churning).await.map(drop)
    }

    async fn churn_alone(&self, name: String, thread: u32, mut random: StdRng) -> Checked<()> {
        let (files, caller, folder) = (&self.mount.files, &self.thread(thread + 1), self.shared.folder);
        for round in 0..random.random_range(2..8) {
            let (lost, full) = (self.lost(), self.full.get());
            let name = Bytes::from(format!("{name}-{round}"));
            let how = random.random_range(0..3);
            let waits = [some_time(&mut random, 0, 120), some_time(&mut random, 0, 20)];
            let churned = async {
                if how == 0 {
                    return self.remove_while_open(thread, name, waits).await;
                }
                if how == 1 {
                    let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
                    let (entry, opened) =
                        files.create(caller, folder, name.clone(), 0o100_644, flags).await?;
                    files.release(caller, entry.attributes.ino, opened.handle, None, false).await?;
                } else {
                    files.mknod(caller, folder, name.clone(), 0o100_644, 0).await?;
                }
                files.unlink(caller, folder, name.clone()).await
            };
            match churned.await {
                Err(Errno(libc::ENOSPC)) if full || self.full.get() => {}
                churned => self.unless_lost("making and removing a file", lost, churned)?,
            }
        }
        Ok(())
    }

    /// Makes a file with content, and removes it while another thread opens it again: who has it open finds what
    /// was in it, and goes on writing.
    async fn remove_while_open(
        &self,
        thread: u32,
        name: Bytes,
        waits: [Duration; 2],
    ) -> std::result::Result<(), Errno> {
        let (files, caller, folder) = (&self.mount.files, &self.thread(thread + 1), self.shared.folder);
        let content = name.clone();
        let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
        let (entry, opened) = files.create(caller, folder, name.clone(), 0o100_644, flags).await?;
        let ino = entry.attributes.ino;
        files.write(caller, ino, opened.handle, 0, content.clone(), WriteFlags::default()).await?;
        files.flush(caller, ino, opened.handle, 0).await?;
        files.release(caller, ino, opened.handle, None, false).await?;
        let opener = &self.thread(thread + 1 + THREADS);
        let opening = async {
            tokio::time::sleep(waits[0]).await;
            let opened = match files.open(opener, ino, libc::O_RDWR as u32).await {
                // It came too late.
                Err(Errno(libc::ENOENT | libc::ESTALE)) => return Ok(()),
                opened => opened?,
            };
            tokio::time::sleep(waits[1]).await;
            let found = files.read(opener, ino, opened.handle, 0, 4096, true).await;
            // And goes on with it.
            let more = Bytes::from_static(b"more");
            let end = content.len() as u64;
            let written = files.write(opener, ino, opened.handle, end, more, WriteFlags::default()).await;
            let synced = files.fsync(opener, ino, opened.handle, false).await;
            files.release(opener, ino, opened.handle, None, false).await?;
            written.and(synced)?;
            let found = found?.concat();
            match found == content {
                true => Ok(()),
                false => {
                    tracing::error!(?found, ?content, "an open file has other content");
                    Err(Errno(libc::EBADMSG))
                }
            }
        };
        let removing = async {
            tokio::time::sleep(waits[0] + waits[1] / 2).await;
            files.unlink(caller, folder, name).await
        };
        futures::try_join!(opening, removing).map(drop)
    }
}
