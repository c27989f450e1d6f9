//! Mount flags of a StorageClass or PersistentVolume (`mountOptions`). One that isn't honoured is refused by name.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::CsiError;

/// Bytes of all flags together at most, by the specification.
const FLAGS_BYTES_MAX: usize = 4096;
/// The flags, for the message about one that isn't among them.
const KNOWN: &str = "ro, rw, nosuid, suid, nodev, dev, noexec, exec, noatime, relatime, context=<SELinux context>, buffer=<size>, \
     timeout=<seconds>, readers=<number>";
/// The smallest buffer of a client (bytes).
const BUFFER_BYTES_MIN: u64 = 4 << 20;
/// The largest buffer of a client (bytes): a mount host has many.
const BUFFER_BYTES_MAX: u64 = 4 << 30;
/// Descriptors of the device at most.
const READERS_MAX: u16 = 16;

/// How a volume is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountFlags {
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
    /// The SELinux context of all files, whatever they have themselves. Means nothing on a node without SELinux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Bytes that may be buffered before they are written out; otherwise the client's default.
    pub buffer_bytes: Option<u64>,
    /// Seconds after which operations fail while the cluster can't be reached; otherwise they wait.
    pub timeout_seconds: Option<u32>,
    /// Threads that read requests from the kernel; otherwise the client's default.
    pub readers: Option<u16>,
}

impl MountFlags {
    /// Parses them; an element may hold several, separated by commas. Later ones win.
    ///
    /// # Errors
    /// [`CsiError::Invalid`], which names the flag.
    pub fn parse(flags: &[String]) -> Result<MountFlags, CsiError> {
        if flags.iter().map(String::len).sum::<usize>() > FLAGS_BYTES_MAX {
            return Err(CsiError::Invalid(format!("mount flags have more than {FLAGS_BYTES_MAX} bytes")));
        }
        let mut parsed = MountFlags::default();
        let mut unknown = BTreeSet::new();
        let all = flags.iter().flat_map(|flag| split(flag)).map(str::trim);
        for flag in all.filter(|flag| !flag.is_empty()) {
            match flag.split_once('=') {
                None => match flag {
                    "ro" | "rw" => parsed.read_only = flag == "ro",
                    "nosuid" | "suid" => parsed.nosuid = flag == "nosuid",
                    "nodev" | "dev" => parsed.nodev = flag == "nodev",
                    "noexec" | "exec" => parsed.noexec = flag == "noexec",
                    "noatime" | "relatime" | "atime" => parsed.noatime = flag == "noatime",
                    // What is done in any case.
                    "defaults" => {}
                    _ => drop(unknown.insert(flag)),
                },
                Some(("context", context)) => parsed.context = Some(selinux_context(context)?),
                Some(("buffer", size)) => {
                    let bytes = atoll_crds::quantity::Quantity::from(size)
                        .bytes()
                        .map_err(|error| CsiError::Invalid(format!("mount flag {flag}: {error}")))?;
                    if !(BUFFER_BYTES_MIN..=BUFFER_BYTES_MAX).contains(&bytes) {
                        return Err(CsiError::Invalid(format!(
                            "mount flag {flag}: expected a size between 4Mi and 4Gi"
                        )));
                    }
                    parsed.buffer_bytes = Some(bytes);
                }
                Some(("timeout", seconds)) => {
                    let seconds = seconds.parse().ok().filter(|seconds| *seconds > 0);
                    parsed.timeout_seconds = Some(seconds.ok_or_else(|| {
                        CsiError::Invalid(format!(
                            "mount flag {flag}: expected a number of seconds, at least 1"
                        ))
                    })?);
                }
                Some(("readers", number)) => {
                    let number = number.parse().ok().filter(|number| (1..=READERS_MAX).contains(number));
                    parsed.readers = Some(number.ok_or_else(|| {
                        CsiError::Invalid(format!(
                            "mount flag {flag}: expected a number from 1 to {READERS_MAX}"
                        ))
                    })?);
                }
                Some(_) => drop(unknown.insert(flag)),
            }
        }
        match unknown.first() {
            None => Ok(parsed),
            Some(flag) => {
                Err(CsiError::Invalid(format!("mount flag '{flag}' is unknown; choose among {KNOWN}")))
            }
        }
    }
}

/// The flags of an element. A comma between double quotes separates none: an SELinux context may have some, and kubelet puts
/// those in quotes.
fn split(element: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    element.split(move |letter| {
        is_quoted ^= letter == '"';
        letter == ',' && !is_quoted
    })
}

/// An SELinux context, with or without quotes around it. It becomes part of a text that the kernel takes apart.
fn selinux_context(text: &str) -> Result<String, CsiError> {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let is_plain = inner.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'\\=".contains(&byte));
    if !is_plain || inner.split(':').count() < 3 {
        return Err(CsiError::Invalid(format!(
            "mount flag context={text}: expected an SELinux context, as system_u:object_r:container_file_t:s0"
        )));
    }
    Ok(inner.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Result<MountFlags, CsiError> {
        MountFlags::parse(&flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_honoured() {
        let flags =
            parse(&["ro,nosuid", "nodev", " noexec ", "noatime", "buffer=16Mi", "timeout=30", "readers=4"])
                .unwrap();
        let expected = MountFlags {
            read_only: true,
            nosuid: true,
            nodev: true,
            noexec: true,
            noatime: true,
            context: None,
            buffer_bytes: Some(16 << 20),
            timeout_seconds: Some(30),
            readers: Some(4),
        };
        assert_eq!(flags, expected);
        assert_eq!(parse(&["ro", "rw", "noatime", "relatime", ""]).unwrap(), MountFlags::default());
    }

    #[test]
    fn an_selinux_context_may_have_commas() {
        let pods = "system_u:object_r:container_file_t:s0:c15,c25";
        for written in [&*format!("ro,context=\"{pods}\",nosuid"), &format!("context=\"{pods}\"")] {
            assert_eq!(parse(&[written]).unwrap().context.as_deref(), Some(pods), "{written}");
        }
        let plain = parse(&["context=system_u:object_r:nfs_t:s0", "nodev"]).unwrap();
        assert_eq!((plain.context.as_deref(), plain.nodev), (Some("system_u:object_r:nfs_t:s0"), true));
        for wrong in
            ["context=", "context=nfs_t", "context=a:b:c d", "context=\"a:b:c\"x", "context=a:b:c\",fd=3"]
        {
            let error = parse(&[wrong]).unwrap_err();
            assert!(matches!(&error, CsiError::Invalid(text) if text.contains("context")), "{error}");
        }
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name() {
        for wrong in [
            "sync",
            "strictatime",
            "lazytime",
            "rootcontext=a:b:c:d",
            "uid=7",
            "X-mount.idmap=u:0:100000:65536",
            "buffer=1",
            "buffer=lots",
            "timeout=0",
            "timeout=x",
            "readers=17",
        ] {
            let error = parse(&["ro", wrong]).unwrap_err();
            let name = wrong.split('=').next().unwrap();
            assert!(matches!(&error, CsiError::Invalid(text) if text.contains(name)), "{error}");
        }
        assert!(parse(&["x".repeat(5000).as_str()]).is_err());
    }
}
