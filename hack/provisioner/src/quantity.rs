//! Sizes as Kubernetes writes them.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Bytes of a quantity such as `1Gi`, `500M`, `1.5Ti` or `1e9`, rounded up; `None` if it is none, negative, or more
/// than fits.
pub fn bytes(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.trim();
    // `E` alone is a suffix (exa); before digits it is an exponent.
    let digits = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')));
    let (number, suffix) = text.split_at(digits.unwrap_or(text.len()));
    let factor: f64 = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => f64::from(1 << 10),
        "Mi" => f64::from(1 << 20),
        "Gi" => f64::from(1 << 30),
        "Ti" => 2f64.powi(40),
        "Pi" => 2f64.powi(50),
        "Ei" => 2f64.powi(60),
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
            10f64.powi(exponent)
        }
    };
    // Whole numbers stay exact.
    if let (Ok(number), true) = (number.parse::<u64>(), factor >= 1.0 && factor < 2f64.powi(63)) {
        return number.checked_mul(factor as u64);
    }
    let bytes = (number.parse::<f64>().ok()? * factor).ceil();
    (bytes >= 0.0 && bytes < 2f64.powi(63)).then_some(bytes as u64)
}

/// A number of bytes as a quantity; in the largest binary unit that divides it.
pub fn quantity(bytes: u64) -> Quantity {
    for (shift, suffix) in [(40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return Quantity(format!("{}{suffix}", bytes >> shift));
        }
    }
    Quantity(bytes.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_understood() {
        let parse = |text: &str| bytes(&Quantity(text.into()));
        assert_eq!(parse("1Gi"), Some(1 << 30));
        assert_eq!(parse("1.5Gi"), Some(3 << 29));
        assert_eq!(parse("500M"), Some(500_000_000));
        assert_eq!(parse("12"), Some(12));
        assert_eq!(parse("1e3"), Some(1000));
        assert_eq!(parse("2E"), Some(2_000_000_000_000_000_000));
        assert_eq!(parse("1500m"), Some(2));
        assert_eq!(parse("9007199254740993"), Some(9_007_199_254_740_993), "exact beyond 2^53");
        for wrong in ["", "-1Gi", "Gi", "1Xi", "1 Gi", "100Ei"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn bytes_are_written_in_the_unit_that_fits() {
        assert_eq!(quantity(1 << 30).0, "1Gi");
        assert_eq!(quantity(3 << 29).0, "1536Mi");
        assert_eq!(quantity(1000).0, "1000");
        assert_eq!(quantity(0).0, "0");
        assert_eq!(quantity(1 << 50).0, "1024Ti");
    }
}
