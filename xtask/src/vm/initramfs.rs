//! The root file system of the test machine: busybox, a few modules, the program with its
//! libraries, and an init that runs it.

use super::Work;
use super::kernel::Kernel;
use crate::sh;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// In the order in which they are inserted: what a module needs comes before it.
const MODULES: [&str; 15] = [
    "net/llc/llc",
    "net/802/stp",
    "net/802/garp",
    "net/802/mrp",
    "net/8021q/8021q",
    "net/tls/tls",
    "drivers/net/bonding/bonding",
    "net/bridge/bridge",
    "net/ipv4/udp_tunnel",
    "net/ipv6/ip6_udp_tunnel",
    "drivers/net/vxlan/vxlan",
    "drivers/net/dummy",
    "drivers/net/veth",
    "net/sched/sch_ingress",
    "net/sched/cls_bpf",
];
/// Modules that another module needs in newer kernels only.
const NEWER: [&str; 1] = ["net/tls/tls"];
/// Directory of tools that busybox lacks, or has in part only.
const TOOLS: &str = "tools";
/// Other directories of modules in older kernels.
const OLD_PLACES: [(&str, &str); 1] = [("drivers/net/vxlan/vxlan", "drivers/net/vxlan")];

/// Lays out the machine's root below `target` and packs it; returns the archive's path.
pub fn pack(target: &Path, kernel: &Kernel, work: &Work) -> Result<PathBuf> {
    let root = target.join("root");
    let _ = fs::remove_dir_all(&root);
    for dir in [
        "bin",
        "dev",
        "proc",
        "sys",
        "tmp",
        "run",
        "root",
        "lib/modules",
        "test",
        "var",
        "etc",
        TOOLS,
    ] {
        fs::create_dir_all(root.join(dir))
            .with_context(|| format!("make {dir} in the initramfs"))?;
    }
    std::os::unix::fs::symlink("../run", root.join("var/run")).context("make /var/run")?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")
        .context("write /etc/passwd")?;
    fs::write(root.join("etc/group"), "root:x:0:\n").context("write /etc/group")?;
    let busybox = sh::find_program("busybox").context("find busybox")?;
    fs::copy(busybox, root.join("bin/busybox")).context("copy busybox")?;
    let modules = lay_modules(&root, kernel)?;
    lay_program(&root, &work.program, Path::new("/test/program"))?;
    for tool in work.tools {
        let found = sh::find_program(tool).with_context(|| format!("find {tool}"))?;
        lay_program(&root, &found, &Path::new("/").join(TOOLS).join(tool))?;
    }
    work.programs
        .iter()
        .try_for_each(|program| lay_program(&root, program, program))?;
    lay_init(&root, &modules, &work.arguments)?;
    archive(&root, &target.join("initramfs.cpio"))
}

fn lay_modules(root: &Path, kernel: &Kernel) -> Result<Vec<String>> {
    let builtin = fs::read_to_string(kernel.modules.join("modules.builtin"))
        .context("read the list of what is built in")?;
    let mut laid = Vec::new();
    for module in MODULES {
        if let Some(file) = module_file(&kernel.modules, module) {
            let name = format!("{}.ko", module.rsplit('/').next().unwrap_or(module));
            lay_module(&file, &root.join("lib/modules").join(&name))?;
            laid.push(name);
        } else if !builtin.contains(&format!("{module}.ko")) && !NEWER.contains(&module) {
            bail!("kernel {} has no module {module}", kernel.version);
        }
    }
    Ok(laid)
}

fn module_file(modules: &Path, module: &str) -> Option<PathBuf> {
    let old = OLD_PLACES
        .iter()
        .find(|(new, _)| *new == module)
        .map(|(_, old)| *old);
    let places = std::iter::once(module).chain(old);
    let files = places
        .flat_map(|place| ["ko", "ko.xz"].map(|end| modules.join(format!("kernel/{place}.{end}"))));
    files.into_iter().find(|file| file.is_file())
}

fn lay_module(from: &Path, to: &Path) -> Result<()> {
    if from.extension().is_some_and(|end| end == "ko") {
        return fs::copy(from, to)
            .map(drop)
            .with_context(|| format!("copy {}", from.display()));
    }
    let unpacked = fs::File::create(to).with_context(|| format!("create {}", to.display()))?;
    sh::run(
        Command::new("busybox")
            .args(["unxz", "-c"])
            .arg(from)
            .stdout(unpacked),
    )
}

/// The program at some place, without what only debuggers read, and every library that the loader
/// would give it here, each under its path.
fn lay_program(root: &Path, program: &Path, at: &Path) -> Result<()> {
    let place = root.join(at.strip_prefix("/").unwrap_or(at));
    fs::create_dir_all(place.parent().unwrap_or(root)).context("make a directory for a program")?;
    sh::run(
        Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&place)
            .arg(program),
    )?;
    // A static program has none, and ldd calls that a failure.
    let told = Command::new("ldd")
        .arg(program)
        .output()
        .context("start ldd")?;
    for library in libraries(&String::from_utf8_lossy(&told.stdout)) {
        let place = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap_or(root))
            .context("make a directory for libraries")?;
        fs::copy(library, &place).with_context(|| format!("copy {library}"))?;
    }
    Ok(())
}

fn libraries(ldd: &str) -> Vec<&str> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .collect()
}

fn lay_init(root: &Path, modules: &[String], arguments: &[String]) -> Result<()> {
    let init = root.join("init");
    fs::write(&init, init_script(modules, arguments)).context("write init")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("make init executable")
}

/// Mounts what a node has, runs the program once, says its status and turns the machine off.
fn init_script(modules: &[String], arguments: &[String]) -> String {
    let mut script = String::from(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/tools:/bin HOME=/root RUST_BACKTRACE=1\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs dev /dev\n\
         mount -t tmpfs tmpfs /tmp\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         ip link set lo up\n",
    );
    for module in modules {
        script.push_str(&format!(
            "insmod /lib/modules/{module} || echo \"vm: no module {module}\"\n"
        ));
    }
    let quoted: Vec<String> = arguments
        .iter()
        .map(|word| format!(" '{}'", word.replace('\'', "'\\''")))
        .collect();
    script.push_str(&format!(
        "# The firmware leaves its last line open.\n\
         echo; echo \"vm: kernel $(uname -r)\"\n\
         cd /tmp\n\
         /test/program{}\n\
         echo \"vm: exit status $?\"\n\
         poweroff -f\n",
        quoted.concat()
    ));
    script
}

fn archive(root: &Path, file: &Path) -> Result<PathBuf> {
    let list = sh::output(Command::new("find").arg(".").current_dir(root))?;
    let out = fs::File::create(file).with_context(|| format!("create {}", file.display()))?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--quiet", "-o", "-H", "newc", "-R", "0:0"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(out);
    let mut child = cpio.spawn().context("start cpio")?;
    let mut stdin = child.stdin.take().context("write to cpio")?;
    std::io::Write::write_all(&mut stdin, list.as_bytes()).context("tell cpio what to pack")?;
    drop(stdin);
    let status = child.wait().context("wait for cpio")?;
    anyhow::ensure!(status.success(), "cpio ended with {status}");
    Ok(file.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ldd_prints() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        assert_eq!(
            libraries(ldd),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn arguments_reach_the_program_as_they_are() {
        let script = init_script(&["veth.ko".into()], &["--exact".into(), "it's".into()]);
        assert!(
            script.contains("/test/program '--exact' 'it'\\''s'\n"),
            "{script}"
        );
        assert!(script.contains("insmod /lib/modules/veth.ko "), "{script}");
    }
}
