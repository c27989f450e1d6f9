//! Mount options as fstab has them. Pure. One that isn't honoured is refused by name.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::size::Size;

/// The options, for the message about one that isn't among them.
const KNOWN: &str = "metadata=<host:port>, key=<file>, encrypt, ro, rw, nosuid, nodev, noexec, noatime, relatime, \
                     context=<SELinux context>, buffer=<size>, timeout=<seconds>, readers=<number>, host=<name>, name=<text>, \
                     log=<file>";

/// How a volume is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Change a mount that there is.
    pub remount: bool,
    /// Nothing can be changed.
    pub read_only: bool,
    /// Set-id bits mean nothing.
    pub nosuid: bool,
    /// Device nodes mean nothing.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// Reading a file leaves its access time as it is.
    pub noatime: bool,
    /// The SELinux context of all files.
    pub context: Option<String>,
    /// Metadata servers.
    pub metadata: Vec<String>,
    /// The file with the cluster's key.
    pub key: Option<PathBuf>,
    /// All connections are encrypted.
    pub encrypt: bool,
    /// Where the serving process logs.
    pub log: Option<PathBuf>,
    /// Flags of `atoll-fs mount` with their values.
    flags: Vec<(&'static str, String)>,
}

impl Options {
    /// Parses a list with commas; of several that contradict one another the last one counts. `sloppy` leaves out what isn't known.
    ///
    /// # Errors
    /// In words, by the option's name.
    pub fn parse(text: &str, sloppy: bool) -> Result<Options, String> {
        let mut options = Options::default();
        for option in split(text).map(str::trim).filter(|option| !option.is_empty()) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            if !options.take(name, value)? && !sloppy {
                return Err(format!("mount option '{option}' isn't known; choose among {KNOWN}"));
            }
        }
        Ok(options)
    }

    /// Takes one option; false if it isn't known.
    fn take(&mut self, name: &str, value: Option<&str>) -> Result<bool, String> {
        match (name, value) {
            ("remount", None) => self.remount = true,
            ("ro" | "rw", None) => self.read_only = name == "ro",
            ("nosuid" | "suid", None) => self.nosuid = name == "nosuid",
            ("nodev" | "dev", None) => self.nodev = name == "nodev",
            ("noexec" | "exec", None) => self.noexec = name == "noexec",
            ("noatime" | "relatime" | "atime", None) => self.noatime = name == "noatime",
            ("encrypt", None) => self.encrypt = true,
            ("context", Some(context)) => self.context = Some(context.trim_matches('"').to_owned()),
            ("metadata", Some(address)) => self.metadata.push(address.to_owned()),
            ("key", Some(file)) => self.key = Some(absolute(name, file)?),
            ("log", Some(file)) => self.log = Some(absolute(name, file)?),
            ("buffer", Some(size)) => {
                size.parse::<Size>().map_err(|error| format!("mount option buffer: {error}"))?;
                self.flags.push(("--buffer", size.to_owned()));
            }
            ("timeout" | "readers", Some(number)) => {
                number
                    .parse::<u32>()
                    .ok()
                    .filter(|number| *number > 0)
                    .ok_or_else(|| format!("mount option {name}={number}: expected a number, at least 1"))?;
                let flag = if name == "timeout" { "--timeout" } else { "--readers" };
                self.flags.push((flag, number.to_owned()));
            }
            ("host", Some(host)) => self.flags.push(("--host", host.to_owned())),
            ("name", Some(session)) => self.flags.push(("--name", session.to_owned())),
            // What mount(8), systemd and fstab mean by themselves, and what is done in any case.
            ("defaults" | "async" | "auto" | "noauto" | "nofail" | "_netdev", None) => {}
            ("user" | "nouser" | "users" | "owner" | "group", _) | ("comment", Some(_)) => {}
            // What the mount table shows, which mount(8) repeats to change a mount.
            ("user_id" | "group_id" | "max_read" | "blksize", Some(_)) => {}
            ("default_permissions" | "allow_other" | "seclabel", None) => {}
            _ if name.starts_with("x-") || name.starts_with("X-") => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The command that serves such a mount, but for what it is told of its place.
    ///
    /// # Errors
    /// If an option is missing without which there is no mount.
    pub fn command(&self, cluster: &str) -> Result<Command, String> {
        let Some(key) = &self.key else {
            return Err("mount option key=<file> is missing: the file with the cluster's key".to_owned());
        };
        if self.metadata.is_empty() {
            return Err(
                "mount option metadata=<host:port> is missing: one for each metadata server".to_owned()
            );
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg0("atoll-fs").args(["mount", "--cluster", cluster]).arg("--key-file").arg(key);
        command.args(["--metadata", &self.metadata.join(",")]);
        for (set, flag) in [(self.encrypt, "--encrypt"), (self.noatime, "--noatime")] {
            if set {
                command.arg(flag);
            }
        }
        for (flag, value) in &self.flags {
            command.args([flag, value.as_str()]);
        }
        if let Some(context) = &self.context {
            command.args(["--context", context]);
        }
        let restrictions =
            [(self.read_only, "ro"), (self.nosuid, "nosuid"), (self.nodev, "nodev"), (self.noexec, "noexec")];
        let restrictions = restrictions.into_iter().filter(|(set, _)| *set);
        let restrictions: Vec<&str> = restrictions.map(|(_, name)| name).collect();
        if !restrictions.is_empty() {
            command.args(["--options", &restrictions.join(",")]);
        }
        Ok(command)
    }
}

/// The options of a list. A comma between double quotes separates none.
fn split(list: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    list.split(move |letter| {
        is_quoted ^= letter == '"';
        letter == ',' && !is_quoted
    })
}

/// A file: the serving process has another working directory.
fn absolute(name: &str, file: &str) -> Result<PathBuf, String> {
    match file.starts_with('/') {
        true => Ok(PathBuf::from(file)),
        false => Err(format!("mount option {name}={file}: expected a path from the root")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(options: &Options) -> String {
        let command = options.command("00ff").unwrap();
        command.get_args().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_line_of_fstab_is_a_command() {
        let options = Options::parse(
            "rw,metadata=a:7400,metadata=b:7400,key=/etc/key,ro,noatime,nosuid,nofail,_netdev,x-systemd.automount,\
             user=joe,buffer=16Mi,timeout=30,encrypt,context=\"u:r:t:s0:c1,c2\"",
            false,
        );
        assert_eq!(
            line(&options.unwrap()),
            "mount --cluster 00ff --key-file /etc/key --metadata a:7400,b:7400 --encrypt --noatime --buffer 16Mi --timeout 30 \
             --context u:r:t:s0:c1,c2 --options ro,nosuid"
        );
        let shown = "remount,rw,nosuid,user_id=0,group_id=0,default_permissions,allow_other";
        assert!(Options::parse(shown, false).unwrap().remount);
        let plain = Options::parse("ro,rw,noatime,relatime,metadata=a:1,key=/k,defaults", false).unwrap();
        assert_eq!(line(&plain), "mount --cluster 00ff --key-file /k --metadata a:1");
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name() {
        for wrong in [
            "sync",
            "strictatime",
            "uid=7",
            "buffer=lots",
            "timeout=0",
            "readers=x",
            "key=here",
            "ro=1",
            "metadata",
        ] {
            let error = Options::parse(wrong, false).unwrap_err();
            assert!(error.contains(wrong.split('=').next().unwrap()), "{error}");
        }
        assert_eq!(Options::parse("sync,uid=7", true).unwrap(), Options::default(), "sloppy");
        let error = Options::parse("metadata=a:1", false).unwrap().command("00").unwrap_err();
        assert!(error.contains("key="), "{error}");
        let error = Options::parse("key=/k", false).unwrap().command("00").unwrap_err();
        assert!(error.contains("metadata="), "{error}");
    }
}
