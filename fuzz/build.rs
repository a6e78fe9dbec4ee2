//! Each target is a program with the whole monitor in it: what tells the lines of a backtrace is compressed, or all would take
//! 2 GiB.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,--compress-debug-sections=zlib");
}
