//! Prints.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::cli::Format;
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
pub fn json<T: Serialize + ?Sized>(document: &T) -> Result<(), Failure> {
    text(&as_json(document)?)
}

fn as_json<T: Serialize + ?Sized>(document: &T) -> Result<String, Failure> {
    let document =
        serde_json::to_string_pretty(document).map_err(|error| Failure::new(Code::Failed, error))?;
    Ok(document + "\n")
}

/// Prints a document for both.
///
/// # Errors
/// If it can't be serialised.
pub fn yaml<T: Serialize + ?Sized>(document: &T) -> Result<(), Failure> {
    text(&as_yaml(document)?)
}

fn as_yaml<T: Serialize + ?Sized>(document: &T) -> Result<String, Failure> {
    serde_yaml::to_string(document).map_err(|error| Failure::new(Code::Failed, error))
}

/// A line of a listing. Its serialised form is a contract with programs.
pub trait Row: Serialize {
    /// The columns of a table.
    const HEADER: &'static [&'static str];
    /// Those that `-o wide` adds.
    const WIDE: &'static [&'static str];

    /// The cells of a table's columns.
    fn cells(&self) -> Vec<String>;

    /// The cells that `-o wide` adds.
    fn wide_cells(&self) -> Vec<String>;

    /// The resource, as other kubectl commands take it: `kind/name`.
    fn resource(&self) -> String;
}

/// Prints a listing in any of the formats; `empty` in the place of a table without lines.
///
/// # Errors
/// If it can't be written.
pub fn listing<T: Row>(rows: &[T], format: Format, empty: &str) -> Result<(), Failure> {
    text(&rendered(rows, format, empty)?)
}

fn rendered<T: Row>(rows: &[T], format: Format, empty: &str) -> Result<String, Failure> {
    Ok(match format {
        Format::Table | Format::Wide if rows.is_empty() => format!("{empty}\n"),
        Format::Table => table(T::HEADER, rows.iter().map(Row::cells).collect()) + "\n",
        Format::Wide => {
            let header = [T::HEADER, T::WIDE].concat();
            table(&header, rows.iter().map(|row| [row.cells(), row.wide_cells()].concat()).collect()) + "\n"
        }
        Format::Json => as_json(rows)?,
        Format::Yaml => as_yaml(rows)?,
        Format::Name => rows.iter().map(|row| row.resource() + "\n").collect(),
    })
}

/// A cell of what isn't known.
pub fn missing() -> String {
    "-".to_owned()
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

    #[derive(Serialize)]
    struct Line {
        name: &'static str,
    }

    impl Row for Line {
        const HEADER: &'static [&'static str] = &["NAME"];
        const WIDE: &'static [&'static str] = &["NODE"];

        fn cells(&self) -> Vec<String> {
            vec![self.name.to_owned()]
        }

        fn wide_cells(&self) -> Vec<String> {
            vec!["n".to_owned()]
        }

        fn resource(&self) -> String {
            format!("pod/{}", self.name)
        }
    }

    #[test]
    fn a_listing_is_the_same_in_all_formats() {
        let lines = [Line { name: "a" }, Line { name: "b" }];
        let of = |format| rendered(&lines, format, "none").expect("renders");
        assert_eq!(of(Format::Table), "NAME\na\nb\n");
        assert_eq!(of(Format::Wide), "NAME   NODE\na      n\nb      n\n");
        assert_eq!(of(Format::Name), "pod/a\npod/b\n");
        assert_eq!(of(Format::Yaml), "- name: a\n- name: b\n");
        let json: serde_json::Value = serde_json::from_str(&of(Format::Json)).expect("JSON");
        assert_eq!(json, serde_json::json!([{ "name": "a" }, { "name": "b" }]));
        // Programs get an empty list, people a sentence.
        let none = |format| rendered::<Line>(&[], format, "none").expect("renders");
        assert_eq!((none(Format::Wide), none(Format::Name)), ("none\n".to_owned(), String::new()));
        assert_eq!((none(Format::Json), none(Format::Yaml)), ("[]\n".to_owned(), "[]\n".to_owned()));
    }

    #[test]
    fn a_table_has_no_lines_and_nothing_behind_its_last_column() {
        let text =
            table(&["NAME", "AGE"], vec![vec!["a".into(), "1s".into()], vec!["long".into(), "2s".into()]]);
        assert_eq!(text, "NAME   AGE\na      1s\nlong   2s");
    }
}
