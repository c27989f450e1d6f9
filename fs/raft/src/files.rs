//! Segment files: made ready ahead of their use, and used again, by a thread of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::disk::{Disk, DiskFile};
use crate::error::LogError;
use crate::segment::SegmentHeader;
use crate::types::MemberId;

/// Dropped segments kept for being used again, in files; more are deleted.
const SPARE_SEGMENTS_MAX: usize = 2;
/// Zeroes written at once, in bytes.
const ZEROES_BYTES: usize = 1 << 20;
/// After a failure (a full disk), the next segment is tried again this often.
const RETRY: Duration = Duration::from_millis(500);

/// A segment file with its header, empty, durable.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) sequence: u64,
    pub(crate) segment_bytes: u32,
    /// CRC of the header.
    pub(crate) chain: u32,
}

/// The name of a segment.
pub(crate) fn segment_name(sequence: u64) -> String {
    format!("{sequence:016x}.log")
}

/// The sequence number of a segment with this name.
pub(crate) fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    if digits.len() != 16 {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// Whether a file of this name may be used for a new segment (or was on its way to be one).
pub(crate) fn is_spare(name: &str) -> bool {
    name.starts_with("spare-")
}

enum Job {
    Prepare { sequence: u64 },
    Recycle { path: PathBuf, file: Arc<dyn DiskFile>, sequence: u64 },
    Stop,
}

#[derive(Debug, Default)]
struct Ready {
    next: Option<Prepared>,
    /// Why there is none, after the last attempt.
    error: Option<LogError>,
}

/// Makes segment files.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) member: MemberId,
    pub(crate) segment_bytes: u32,
}

impl Maker {
    /// Makes the segment `sequence`, out of `spare` if there is one.
    pub(crate) fn make(&self, sequence: u64, spare: Option<&Path>) -> Result<Prepared, LogError> {
        let path = self.dir.join(segment_name(sequence));
        let made = self.dir.join("spare-new");
        let (from, file) = match spare {
            Some(spare) => {
                let file = self.disk.open(spare).map_err(|e| LogError::io("open", spare, e))?;
                (spare, file)
            }
            None => {
                let file = self.disk.create(&made).map_err(|e| LogError::io("create", &made, e))?;
                self.fill(&*file).map_err(|e| LogError::io("write", &made, e))?;
                (made.as_path(), file)
            }
        };
        let header = SegmentHeader { member: self.member, sequence, segment_bytes: self.segment_bytes };
        let (bytes, chain) = header.encode();
        file.write_at(&[&bytes], 0).map_err(|e| LogError::io("write", from, e))?;
        file.sync().map_err(|e| LogError::io("sync", from, e))?;
        self.disk.rename(from, &path).map_err(|e| LogError::io("rename", from, e))?;
        self.disk.sync_dir(&self.dir).map_err(|e| LogError::io("sync", &self.dir, e))?;
        Ok(Prepared { path, file, sequence, segment_bytes: self.segment_bytes, chain })
    }

    fn fill(&self, file: &dyn DiskFile) -> std::io::Result<()> {
        file.reserve(u64::from(self.segment_bytes))?;
        let zeroes = vec![0; ZEROES_BYTES.min(self.segment_bytes as usize)];
        let mut at = 0;
        while at < self.segment_bytes as usize {
            let n = zeroes.len().min(self.segment_bytes as usize - at);
            file.write_at(&[&zeroes[..n]], at as u64)?;
            at += n;
        }
        Ok(())
    }
}

/// The thread that keeps one segment ready ahead of the one in use.
#[derive(Debug)]
pub(crate) struct Files {
    jobs: Jobs,
    shared: Arc<(Mutex<Ready>, Condvar)>,
}

/// Who does it.
#[derive(Debug)]
enum Jobs {
    Thread(Mutex<Sender<Job>>, Mutex<Option<JoinHandle<()>>>),
    /// Whoever asks, at once: in a simulation, which has one thread.
    Here(Mutex<Worker>),
}

impl Files {
    /// Starts the thread. `next` is the segment that is ready already, `spares` are files that
    /// may be used again.
    pub(crate) fn start(
        maker: Maker,
        next: Option<Prepared>,
        spares: Vec<PathBuf>,
    ) -> Result<Self, LogError> {
        let (jobs, queue) = channel();
        let shared = Arc::new((Mutex::new(Ready { next, error: None }), Condvar::new()));
        let dir = maker.dir.clone();
        let worker = Worker { maker, spares, wanted: None, shared: shared.clone() };
        if atoll_blocking::is_simulated() {
            return Ok(Self { jobs: Jobs::Here(Mutex::new(worker)), shared });
        }
        let thread = std::thread::Builder::new()
            .name("raft-log-files".into())
            .spawn(move || worker.run(queue))
            .map_err(|e| LogError::io("start a thread for", &dir, e))?;
        Ok(Self { jobs: Jobs::Thread(Mutex::new(jobs), Mutex::new(Some(thread))), shared })
    }

    fn send(&self, job: Job) {
        match &self.jobs {
            // The thread ends only with `stop`, after which nothing is asked of it.
            Jobs::Thread(jobs, _) => drop(jobs.lock().send(job)),
            Jobs::Here(worker) => worker.lock().carry_out(job),
        }
    }

    /// Have the segment `sequence` ready soon.
    pub(crate) fn prepare(&self, sequence: u64) {
        self.send(Job::Prepare { sequence });
    }

    /// A segment is no longer needed. It is dropped before those given later.
    pub(crate) fn recycle(&self, path: PathBuf, file: Arc<dyn DiskFile>, sequence: u64) {
        self.send(Job::Recycle { path, file, sequence });
    }

    /// Takes the next segment, waiting for it; an error if it can't be made. A full disk is no
    /// error here: what was accepted waits until there is room (and nothing more is accepted).
    pub(crate) fn take_next(&self) -> Result<Prepared, LogError> {
        let (ready, changed) = &*self.shared;
        let mut ready = ready.lock();
        loop {
            if let Some(next) = ready.next.take() {
                return Ok(next);
            }
            match &ready.error {
                Some(error) if error.is_full() => {}
                Some(error) => return Err(error.clone()),
                None => {}
            }
            if let Jobs::Here(_) = &self.jobs {
                return Err(ready.error.clone().unwrap_or(LogError::Closed));
            }
            changed.wait(&mut ready);
        }
    }

    /// Whether a segment is ready; if not, and the last attempt failed, why.
    pub(crate) fn state(&self) -> (bool, Option<LogError>) {
        let ready = self.shared.0.lock();
        (ready.next.is_some(), ready.error.clone())
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        self.send(Job::Stop);
        if let Jobs::Thread(_, thread) = &self.jobs
            && let Some(thread) = thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that prepares log files panicked");
        }
    }
}

#[derive(Debug)]
struct Worker {
    maker: Maker,
    spares: Vec<PathBuf>,
    /// The segment that is to be made ready.
    wanted: Option<u64>,
    shared: Arc<(Mutex<Ready>, Condvar)>,
}

impl Worker {
    fn run(mut self, queue: Receiver<Job>) {
        loop {
            let job = match self.wanted {
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(_) => queue.recv_timeout(RETRY),
            };
            match job {
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(job) => self.carry_out(job),
                Err(RecvTimeoutError::Timeout) => self.try_prepare(),
            }
        }
        self.carry_out(Job::Stop);
    }

    fn carry_out(&mut self, job: Job) {
        match job {
            Job::Prepare { sequence } => {
                self.wanted = Some(sequence);
                self.try_prepare();
            }
            Job::Recycle { path, file, sequence } => {
                self.recycle(&path, file, sequence);
                // It may be what was missing.
                self.try_prepare();
            }
            Job::Stop => {
                let (ready, changed) = &*self.shared;
                ready.lock().error = Some(LogError::Closed);
                changed.notify_all();
            }
        }
    }

    fn try_prepare(&mut self) {
        let Some(sequence) = self.wanted else { return };
        let spare = self.spares.pop();
        let made = self.maker.make(sequence, spare.as_deref());
        let (ready, changed) = &*self.shared;
        let mut ready = ready.lock();
        match made {
            Ok(next) => {
                if ready.error.take().is_some() {
                    tracing::info!("log segment {sequence} is prepared; the earlier error is over");
                }
                ready.next = Some(next);
                self.wanted = None;
            }
            Err(error) => {
                if ready.error.is_none() {
                    tracing::error!("can't prepare log segment {sequence}: {error}; retrying");
                }
                ready.error = Some(error);
            }
        }
        changed.notify_all();
    }

    fn recycle(&mut self, path: &Path, file: Arc<dyn DiskFile>, sequence: u64) {
        // A reader that still has the file open goes on reading what was in it: then the file is
        // deleted, which leaves it its content.
        let unshared = Arc::strong_count(&file) == 1;
        let fits = file.len().is_ok_and(|len| len == u64::from(self.maker.segment_bytes));
        let disk = &self.maker.disk;
        let done = if unshared && fits && self.spares.len() < SPARE_SEGMENTS_MAX {
            let spare = self.maker.dir.join(format!("spare-{sequence:016x}"));
            disk.rename(path, &spare).map(|()| self.spares.push(spare))
        } else {
            disk.remove(path)
        };
        let done = done.and_then(|()| disk.sync_dir(&self.maker.dir));
        if let Err(error) = done {
            // It stays, and is found again (and dropped again) after a restart.
            tracing::warn!("can't remove the old log segment {}: {error}", path.display());
        }
    }
}
