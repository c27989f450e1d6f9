//! Simulated worlds for a few seconds

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

fn run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_atoll-sim")).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Other seeds each day, or on a faster machine, would find more, and fail for somebody who has changed nothing: for that
/// there is `make sim`.
#[test]
fn worlds_hold() {
    println!("{}", run(&["--seeds", "1000", "--seconds", "20"]));
}

#[test]
fn a_world_has_the_same_course_each_time() {
    let course = || -> Vec<String> {
        let text = run(&["--seeds", "6", "--first", "1000001", "--verbose"]);
        let mut lines: Vec<String> =
            text.lines().filter(|line| line.starts_with("seed")).map(Into::into).collect();
        lines.sort();
        lines
    };
    let first = course();
    assert_eq!(first.len(), 6);
    assert_eq!(first, course());
}
