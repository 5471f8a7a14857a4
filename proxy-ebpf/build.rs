//! Linker arguments of the eBPF program; nothing on the host.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        // LLVM 22 crashes on copies the size of an IPv6 address ("Post-RA pseudo instruction expansion") when it expands them in order.
        println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
}
