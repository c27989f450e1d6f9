//! Files that are made and removed at once, by several threads of a mount: each is an orphan for a moment, and none may stay.

use atoll_client::vfs::{Errno, Vfs};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Checked, SimClient};

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
            let opens = random.random_bool(0.5);
            let churned = async {
                if opens {
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
}
