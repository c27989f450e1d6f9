//! Notices a measurement that hangs. Calls to a hung FUSE mount can't be interrupted by anything but aborting its
//! connection, so without this a run would never end, nor could it be killed.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::target::Target;

/// How often an operation has ended.
static PROGRESS: AtomicU64 = AtomicU64::new(0);

/// An operation has ended: what is being measured doesn't hang.
pub fn is_alive() {
    PROGRESS.fetch_add(1, Ordering::Relaxed);
}

/// How often the watch looks.
const INTERVAL: Duration = Duration::from_millis(500);

struct Watched {
    since: Instant,
    progress: u64,
    what: String,
    abort: Option<std::path::PathBuf>,
}

/// A thread that watches one measurement at a time.
#[derive(Clone)]
pub struct Watchdog {
    watched: Arc<Mutex<Option<Watched>>>,
}

/// While it lives the measurement is being watched.
pub struct Watch<'a>(&'a Watchdog);

impl Watchdog {
    /// Starts the thread; it ends with the process.
    pub fn start(patience: Duration) -> Self {
        let watched = Arc::new(Mutex::new(None));
        let theirs = Arc::clone(&watched);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(INTERVAL);
                look(&theirs, patience);
            }
        });
        Self { watched }
    }

    /// Watches `what` on a target until the result is dropped.
    pub fn watch(&self, target: &Target, what: &str) -> Watch<'_> {
        let abort = if target.disposable { target.mount.abort_file() } else { None };
        let progress = PROGRESS.load(Ordering::Relaxed);
        let watched =
            Watched { since: Instant::now(), progress, what: format!("{what} on {}", target.name), abort };
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = Some(watched);
        Watch(self)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        *self.0.watched.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn look(watched: &Mutex<Option<Watched>>, patience: Duration) {
    let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(watched) = watched.as_mut() else { return };
    let progress = PROGRESS.load(Ordering::Relaxed);
    if progress != watched.progress {
        (watched.since, watched.progress) = (Instant::now(), progress);
    }
    let Some(hung) = Some(watched).filter(|watched| watched.since.elapsed() > patience) else { return };
    // What comes next gets its own time.
    hung.since = Instant::now();
    let Some(abort) = &hung.abort else {
        eprintln!("bench: {} has been going on for {} s", hung.what, patience.as_secs());
        return;
    };
    eprintln!("bench: {} hangs since {} s: its FUSE connection is aborted", hung.what, patience.as_secs());
    if let Err(error) = fs::write(abort, "1") {
        eprintln!("bench: {}: {error} (is fusectl mounted?)", abort.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_takes_too_long_is_aborted() {
        let folder = tempfile::tempdir().unwrap();
        let abort = folder.path().join("abort");
        let watched = Mutex::new(Some(Watched {
            since: Instant::now() - Duration::from_secs(20),
            progress: PROGRESS.load(Ordering::Relaxed),
            what: "x".to_owned(),
            abort: Some(abort.clone()),
        }));
        look(&watched, Duration::from_secs(3600));
        assert!(!abort.exists());
        // Something has ended since: its time begins again. Other tests of this process make progress, too.
        is_alive();
        look(&watched, Duration::from_secs(10));
        assert!(!abort.exists());
        while !abort.exists() {
            look(&watched, Duration::ZERO);
        }
        assert_eq!(fs::read(&abort).unwrap(), b"1");
    }
}
