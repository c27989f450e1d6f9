//! Sizes as people write them: `10G`, `1.5Ti`, `4096`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes, read from a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a size: write a number of bytes, or one with a unit, such as 500M, 10G or 1.5Ti")]
pub struct SizeError(String);

/// Units by suffix. As with Kubernetes' quantities `G` is 10^9 and `Gi` 2^30.
const UNITS: [(&str, u64); 13] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("K", 1_000),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("B", 1),
    ("", 1),
];

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || SizeError(text.to_owned());
        let body = text.trim().strip_suffix("iB").map_or_else(|| text.trim().to_owned(), |t| format!("{t}i"));
        for (suffix, unit) in UNITS {
            let Some(number) = body.strip_suffix(suffix) else { continue };
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
                continue;
            }
            if let Ok(whole) = number.parse::<u64>() {
                return whole.checked_mul(unit).map(Size).ok_or_else(refused);
            }
            let fraction: f64 = number.parse().map_err(|_| refused())?;
            let bytes = fraction * unit as f64;
            return if bytes < u64::MAX as f64 { Ok(Size(bytes as u64)) } else { Err(refused()) };
        }
        Err(refused())
    }
}

impl fmt::Display for Size {
    /// In binary units with one decimal, as `df -h` has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = "B";
        for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = next;
        }
        if unit == "B" { write!(f, "{} B", self.0) } else { write!(f, "{value:.1} {unit}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_decimal_and_binary_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("10G", 10_000_000_000),
            ("10Gi", 10 << 30),
            ("10GiB", 10 << 30),
            ("1.5Ti", 3 << 39),
            ("500M", 500_000_000),
            ("7B", 7),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "G", "-1", "ten", "1X", "1..5G", "99999999P", "1e3"] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains("10G"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_shown_for_people() {
        assert_eq!(Size(100).to_string(), "100 B");
        assert_eq!(Size(1536).to_string(), "1.5 KiB");
        assert_eq!(Size(10 << 30).to_string(), "10.0 GiB");
    }
}
