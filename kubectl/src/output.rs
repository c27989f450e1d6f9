//! Prints.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::exit::{Code, Failure};

/// Prints a text. Whoever reads it may have seen enough: a closed pipe is no failure.
///
/// # Errors
/// If it can't be written.
pub fn text(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Code::Failed, format_args!("can't write: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a document for programs.
///
/// # Errors
/// If it can't be serialised.
pub fn json<T: Serialize>(document: &T) -> Result<(), Failure> {
    let document =
        serde_json::to_string_pretty(document).map_err(|error| Failure::new(Code::Failed, error))?;
    text(
        &(document
            + "
"),
    )
}

/// Prints a document for both.
///
/// # Errors
/// If it can't be serialised.
pub fn yaml<T: Serialize>(document: &T) -> Result<(), Failure> {
    let document = serde_yaml::to_string(document).map_err(|error| Failure::new(Code::Failed, error))?;
    text(&document)
}

/// A table as kubectl prints them.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Bytes for people, in binary units.
pub fn size(bytes: i64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "Ki", "Mi", "Gi", "Ti", "Pi"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes}B") } else { format!("{value:.1}{unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1}Ei")
}

/// A time span for people, as kubectl prints ages.
pub fn age(seconds: i64) -> String {
    match seconds {
        i64::MIN..=119 => format!("{}s", seconds.max(0)),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!((size(0), size(1536), size(10 << 30)), ("0B".into(), "1.5Ki".into(), "10.0Gi".into()));
        let ages: Vec<String> = [-5, 90, 600, 9000, 200_000].into_iter().map(age).collect();
        assert_eq!(ages, ["0s", "90s", "10m", "2h", "2d"]);
    }

    #[test]
    fn a_table_has_no_lines_and_nothing_behind_its_last_column() {
        let text =
            table(&["NAME", "AGE"], vec![vec!["a".into(), "1s".into()], vec!["long".into(), "2s".into()]]);
        assert_eq!(text, "NAME   AGE\na      1s\nlong   2s");
    }
}
