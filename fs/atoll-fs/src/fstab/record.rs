//! What the process that serves a mount leaves for who unmounts it: a file that is locked for as long as it lives, and says in the
//! end whether everything could be written out. A process that is killed says nothing.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::exit::{Context, Failure, Outcome};

/// What is in it when everything was written out.
const ENDED: &str = "ended\n";

/// The serving process's side.
#[derive(Debug)]
pub struct Record {
    file: File,
    path: PathBuf,
}

impl Record {
    /// Makes and locks one. That of an earlier process at the same place stays with who waits for it.
    ///
    /// # Errors
    /// If the file can't be made.
    pub fn hold(path: &Path) -> Result<Record, Failure> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).context(folder.display())?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context(path.display());
            }
            _ => {}
        }
        let file = File::options().write(true).create_new(true).open(path).context(path.display())?;
        file.lock().context(path.display())?;
        Ok(Record { file, path: path.to_owned() })
    }

    /// Says how the process ends.
    pub fn close(mut self, outcome: &Outcome) {
        let text = match outcome {
            Ok(()) => ENDED.to_owned(),
            Err(failure) => failure.to_string(),
        };
        // Nothing more can be done about a file that can't be written: it reads as that of a process that was killed.
        let _ = self.file.write_all(text.as_bytes());
        let number = |found: io::Result<fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
        if number(fs::metadata(&self.path)) == number(self.file.metadata()) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The side of who waits for the end of a process.
#[derive(Debug)]
pub struct Waiting {
    file: File,
    /// It had ended before it was asked to.
    was_dead: bool,
}

impl Waiting {
    /// Opens the record of the process that serves; `None` if it has none.
    ///
    /// # Errors
    /// If the file can't be opened.
    pub fn open(path: &Path) -> Result<Option<Waiting>, Failure> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(path.display()),
        };
        let was_dead = file.try_lock_shared().is_ok();
        if was_dead {
            file.unlock().context(path.display())?;
        }
        Ok(Some(Waiting { file, was_dead }))
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// If not everything was written out.
    pub fn wait(mut self) -> Outcome {
        self.file.lock_shared().context("waiting for the process that served the mount")?;
        let mut text = String::new();
        self.file.read_to_string(&mut text).context("waiting for the process that served the mount")?;
        match text.as_str() {
            ENDED => Ok(()),
            // What it had not written was lost then.
            "" if self.was_dead => Ok(()),
            "" => Err(Failure::failed(
                "unmounted, but the process that served the mount was killed: data that was not synced may be lost",
            )),
            why => Err(Failure::failed(format_args!("unmounted, but {why}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_unmounts_learns_how_the_process_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mounts/srv-data");
        assert!(Waiting::open(&path).unwrap().is_none());
        let record = Record::hold(&path).unwrap();
        let waiting = Waiting::open(&path).unwrap().unwrap();
        // The next process at the same place isn't mixed up with it.
        let next = Record::hold(&path).unwrap();
        record.close(&Err(Failure::failed("the cluster is away")));
        let error = waiting.wait().unwrap_err().to_string();
        assert!(error.contains("the cluster is away"), "{error}");
        let waiting = Waiting::open(&path).unwrap().unwrap();
        next.close(&Ok(()));
        waiting.wait().unwrap();
        assert!(!path.exists());

        let killed = Record::hold(&path).unwrap();
        let waiting = Waiting::open(&path).unwrap().unwrap();
        drop(killed);
        let error = waiting.wait().unwrap_err().to_string();
        assert!(error.contains("killed"), "{error}");
        Waiting::open(&path).unwrap().unwrap().wait().unwrap();
    }
}
