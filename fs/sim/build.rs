//! The C library's clock and random numbers are replaced by this program's own (`src/seam.rs`), also for crates that look
//! for them by name at run time: so these have to be among the names that the program shows to the dynamic linker.

fn main() {
    println!("cargo::rustc-link-arg=-rdynamic");
    println!("cargo::rerun-if-changed=build.rs");
}
