//! Linker arguments of `portway-ebpf`, for bpf-linker; the host library needs none.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "bpf") {
        // LLVM 22 crashes ("Post-RA pseudo instruction expansion") when it expands IPv6-sized
        // copies in order.
        println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
        // Names and types of programs and maps, for bpftool and the verifier's log.
        println!("cargo:rustc-link-arg-bins=--btf");
    }
}
