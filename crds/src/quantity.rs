//! Kubernetes' quantities, such as `10Gi` and `500m`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// A quantity as its writer wrote it; a plain number is taken for its text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Quantity(String);

/// A text is no number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a size: write a whole number of bytes, or one with a unit, such as 500M, 10Gi or 1.5Ti"
)]
pub struct QuantityError(String);

/// Suffixes and what they stand for, the longer ones first. `m` is a thousandth and no use for bytes.
const UNITS: [(&str, u64); 12] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
];

/// What the API server accepts as a quantity.
pub const PATTERN: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

impl Quantity {
    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A number of bytes, in the largest binary unit that divides it.
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Quantity {
        let units = UNITS[..6].iter().rev();
        let fitting = units.clone().find(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit));
        Quantity(match fitting {
            Some((suffix, unit)) => format!("{}{suffix}", bytes / unit),
            None => bytes.to_string(),
        })
    }

    /// The number of bytes that this is, rounded up to a whole one as Kubernetes does.
    ///
    /// # Errors
    /// If it is negative, no number, or more than 2^64 - 1.
    pub fn bytes(&self) -> Result<u64, QuantityError> {
        let refused = || QuantityError(self.0.clone());
        let text = self.0.strip_prefix('+').unwrap_or(&self.0);
        if let Some(at) = text.find(['e', 'E']).filter(|at| at + 1 < text.len() && !text.ends_with('i')) {
            let exponent: i32 = text[at + 1..].parse().map_err(|_| refused())?;
            let (whole, parts) = decimal(&text[..at]).ok_or_else(refused)?;
            let exponent = exponent - i32::try_from(parts).map_err(|_| refused())?;
            let power = 10_u128.checked_pow(exponent.unsigned_abs()).ok_or_else(refused)?;
            let bytes = if exponent < 0 { Some(whole.div_ceil(power)) } else { whole.checked_mul(power) };
            return bytes.and_then(|bytes| u64::try_from(bytes).ok()).ok_or_else(refused);
        }
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, *unit)))
            .unwrap_or((text, 1));
        let (whole, parts) = decimal(digits).ok_or_else(refused)?;
        let divisor = 10_u128.checked_pow(parts).ok_or_else(refused)?;
        let bytes = whole.checked_mul(unit.into()).ok_or_else(refused)?.div_ceil(divisor);
        u64::try_from(bytes).map_err(|_| refused())
    }
}

/// The digits of a decimal number as a whole one, and how many of them are behind the point.
fn decimal(text: &str) -> Option<(u128, u32)> {
    let (before, after) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{before}{after}");
    let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| Some((digits.parse().ok()?, u32::try_from(after.len()).ok()?))).flatten()
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Quantity {
        Quantity(text.to_owned())
    }
}

impl From<String> for Quantity {
    fn from(text: String) -> Quantity {
        Quantity(text)
    }
}

impl From<Quantity> for k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    fn from(quantity: Quantity) -> Self {
        Self(quantity.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Quantity, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum IntOrString {
            Int(i64),
            Text(String),
        }
        Ok(match IntOrString::deserialize(deserializer)? {
            IntOrString::Int(number) => Quantity(number.to_string()),
            IntOrString::Text(text) => Quantity(text),
        })
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": PATTERN,
            "maxLength": 40
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_bytes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("+7", 7),
            ("10G", 10_000_000_000),
            ("10Gi", 10 << 30),
            ("1.5Ti", 3 << 39),
            (".5Ki", 512),
            ("1.", 1),
            ("0.3", 1),
            ("1e3", 1000),
            ("1.5E3", 1500),
            ("5e-1", 1),
            ("2E", 2_000_000_000_000_000_000),
            ("8Ei", 8 << 60),
            ("500k", 500_000),
        ] {
            assert_eq!(Quantity::from(text).bytes(), Ok(bytes), "{text}");
        }
        for text in ["", "Gi", "-1", "ten", "1X", "500m", "1..5G", "99Ei", "1e30", "1e", "e3", "1 Gi"] {
            let error = Quantity::from(text).bytes().expect_err(text).to_string();
            assert!(error.contains("10Gi"), "{text}: {error}");
        }
    }

    #[test]
    fn bytes_are_written_in_the_largest_unit_that_divides_them() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (1024, "1Ki"),
            (10 << 30, "10Gi"),
            (3 << 39, "1536Gi"),
            (1_000_000, "1000000"),
        ] {
            let quantity = Quantity::from_bytes(bytes);
            assert_eq!(quantity.as_str(), text);
            assert_eq!(quantity.bytes(), Ok(bytes));
        }
    }

    #[test]
    fn a_plain_number_is_a_quantity_too() {
        assert_eq!(serde_json::from_str::<Quantity>("1024").unwrap(), Quantity::from("1024"));
        assert_eq!(serde_json::from_str::<Quantity>("\"1Ki\"").unwrap(), Quantity::from("1Ki"));
        assert_eq!(serde_json::to_string(&Quantity::from("1Ki")).unwrap(), "\"1Ki\"");
    }
}
