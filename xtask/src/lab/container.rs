//! Plays a container of a real Pod object as a runtime does, capabilities, files and environment;
//! seccomp and AppArmor are not played.
//!
//! The runtime's own part runs as a hidden command in the container's process, because between fork
//! and exec nothing may allocate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};
use serde_json::Value;

use super::host::Tools;

/// The host's directories that stand in for an image's libraries: the agent is linked with them.
const LIBRARIES: [&str; 3] = ["/usr", "/lib", "/lib64"];
/// Directory of the programs in the image.
const IMAGE: &str = "/image";
/// Directory of the API server's certificate and the account's token in a Pod.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Paths that runtimes mount read-only in every container.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The capabilities by number, in Kubernetes' words.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A container: its Pod, and the parts of the lab that stand in for the host's.
#[derive(Debug)]
pub struct Container {
    /// The Pod as the API server keeps it, its defaults filled in.
    pub pod: Value,
    /// `spec.nodeName`, which the scheduler would have filled in.
    pub node: String,
    /// Content of the ConfigMaps that the container takes its environment from.
    pub config: BTreeMap<String, String>,
    /// For each path of a hostPath volume the directory of the lab that stands for it.
    pub host_paths: BTreeMap<PathBuf, PathBuf>,
    /// A directory with `token`, `ca.crt` and `namespace`.
    pub account: PathBuf,
    /// An empty directory, on which the container's root is made.
    pub root: PathBuf,
}

/// The runtime's part (hidden).
#[derive(clap::Args, Clone, Debug)]
pub struct ContainerArgs {
    /// An empty directory.
    #[arg(long)]
    root: PathBuf,
    /// A directory or file of the host, and where it is seen inside.
    #[arg(long, value_name = "FROM:TO:rw|ro")]
    bind: Vec<String>,
    /// A capability that is kept.
    #[arg(long)]
    capability: Vec<String>,
    /// The command inside.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Container {
    /// The command that becomes the container's, with its environment.
    ///
    /// # Errors
    /// If the Pod wants what is not played here, which is then named.
    pub fn command(&self, tools: &Tools) -> Result<Command> {
        let spec = &self.pod["spec"];
        let container = &spec["containers"][0];
        let mut command = Command::new(&tools.xtask);
        command
            .arg("container")
            .arg("--root")
            .arg(&self.root)
            .env_clear()
            .env("PATH", IMAGE);
        for bind in self.binds(tools)? {
            command.args(["--bind", &bind]);
        }
        for capability in kept_capabilities(&container["securityContext"])? {
            command.args(["--capability", &capability]);
        }
        command
            .envs(self.environment(container)?)
            .arg("--")
            .args(texts(&container["command"]))
            .args(texts(&container["args"]));
        ensure!(
            spec["hostNetwork"] == true,
            "only Pods in their node's own network are played"
        );
        Ok(command)
    }

    fn binds(&self, tools: &Tools) -> Result<Vec<String>> {
        let spec = &self.pod["spec"];
        let image = tools
            .portway
            .parent()
            .context("find the directory of the agent")?;
        let mut binds = vec![
            bind(image, Path::new(IMAGE), "ro"),
            bind(&self.account, Path::new(ACCOUNT), "ro"),
        ];
        for mount in spec["containers"][0]["volumeMounts"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let mut volumes = spec["volumes"].as_array().into_iter().flatten();
            let volume = volumes
                .find(|volume| volume["name"] == mount["name"])
                .context("find a mount's volume")?;
            let path = Path::new(
                volume["hostPath"]["path"]
                    .as_str()
                    .context("only hostPath volumes are played")?,
            );
            let from = self
                .host_paths
                .get(path)
                .with_context(|| format!("nothing stands for {}", path.display()))?;
            let to = Path::new(
                mount["mountPath"]
                    .as_str()
                    .context("read where a volume is mounted")?,
            );
            binds.push(bind(
                from,
                to,
                if mount["readOnly"] == true {
                    "ro"
                } else {
                    "rw"
                },
            ));
        }
        Ok(binds)
    }

    /// Values win over ConfigMaps.
    fn environment(&self, container: &Value) -> Result<BTreeMap<String, String>> {
        let mut environment = self.config.clone();
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = variable["name"]
                .as_str()
                .context("read a variable's name")?;
            let field = variable
                .pointer("/valueFrom/fieldRef/fieldPath")
                .and_then(Value::as_str);
            let value = match (variable["value"].as_str(), field) {
                (Some(value), None) => value,
                (None, Some("spec.nodeName")) => &self.node,
                _ => bail!("the variable {name} comes from where nothing is played: {variable}"),
            };
            environment.insert(name.to_owned(), value.to_owned());
        }
        Ok(environment)
    }
}

/// Returns the capabilities that a container keeps of root's. It must drop all that it does not
/// name.
fn kept_capabilities(context: &Value) -> Result<Vec<String>> {
    ensure!(
        texts(&context["capabilities"]["drop"]) == ["ALL"],
        "a runtime's own choice of capabilities is not played"
    );
    ensure!(
        context["allowPrivilegeEscalation"] == false && context["privileged"] == false,
        "privileges are not played"
    );
    ensure!(
        context["runAsUser"] == 0 && context["readOnlyRootFilesystem"] == true,
        "another user, or files that stay, are not"
    );
    Ok(texts(&context["capabilities"]["add"]))
}

fn texts(array: &Value) -> Vec<String> {
    array
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn bind(from: &Path, to: &Path, how: &str) -> String {
    format!("{}:{}:{how}", from.display(), to.display())
}

/// The names of a set of capabilities, as `/proc/PID/status` writes it, in hexadecimal.
///
/// # Errors
/// If it is no number, or has a capability that is not known here.
pub fn capabilities(mask: &str) -> Result<BTreeSet<&'static str>> {
    let mask =
        u64::from_str_radix(mask, 16).with_context(|| format!("read the capabilities {mask}"))?;
    ensure!(
        mask >> CAPABILITIES.len() == 0,
        "{mask:x} has capabilities that are not known here"
    );
    Ok((0..)
        .zip(CAPABILITIES)
        .filter(|(bit, _)| mask >> bit & 1 == 1)
        .map(|(_, name)| name)
        .collect())
}

/// Makes the container's root and becomes its command. `setpriv` takes the capabilities out of the
/// bounding set, which is what a runtime does too: a root that executes gets no more than the
/// bounding set has.
///
/// # Errors
/// If it cannot; it returns only then.
pub fn play(args: &ContainerArgs) -> Result<()> {
    make_root(&args.root, &args.bind).context("make the container's root")?;
    let kept: String = args
        .capability
        .iter()
        .map(|name| format!(",+{}", name.to_lowercase()))
        .collect();
    let mut command = Command::new("/usr/bin/setpriv");
    command.arg(format!("--bounding-set=-all{kept}")).args([
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--no-new-privs",
    ]);
    Err(command.arg("--").args(&args.command).exec()).context("start setpriv")
}

fn make_root(root: &Path, binds: &[String]) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("leave the host's mounts")?;
    // What the host mounts later is seen, as with HostToContainer; what is mounted here is not seen
    // there.
    remount(Path::new("/"), MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
    mount(
        Some("tmpfs"),
        root,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755"),
    )
    .context("mount the root")?;
    for path in LIBRARIES
        .into_iter()
        .chain(["/sys"])
        .filter(|path| Path::new(path).exists())
    {
        bind_below(root, Path::new(path), Path::new(path), "ro")?;
    }
    for path in ["/proc", "/dev/null"] {
        bind_below(root, Path::new(path), Path::new(path), "rw")?;
    }
    for path in READ_ONLY
        .into_iter()
        .filter(|path| Path::new(path).exists())
    {
        bind_below(root, Path::new(path), Path::new(path), "ro")?;
    }
    for text in binds {
        let words: Vec<&str> = text.split(':').collect();
        let [from, to, how] = words[..] else {
            bail!("{text} is no bind mount")
        };
        bind_below(root, Path::new(from), Path::new(to), how)?;
    }
    enter(root)
}

fn bind_below(root: &Path, from: &Path, to: &Path, how: &str) -> Result<()> {
    let to = root.join(to.strip_prefix("/").context("mount at an absolute path")?);
    if !to.exists() && from.is_dir() {
        fs::create_dir_all(&to).with_context(|| format!("create {}", to.display()))?;
    } else if !to.exists() {
        fs::create_dir_all(to.parent().context("find the parent")?)
            .context("create a directory")?;
        File::create(&to).with_context(|| format!("create {}", to.display()))?;
    }
    mount(
        Some(from),
        &to,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("mount {} at {}", from.display(), to.display()))?;
    match how {
        "ro" => remount(
            &to,
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        ),
        _ => Ok(()),
    }
}

fn remount(at: &Path, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, at, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("mount {} anew", at.display()))
}

/// Makes `root` the root, and lets go of the host's.
fn enter(root: &Path) -> Result<()> {
    chdir(root).context("enter the root")?;
    pivot_root(".", ".").context("change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("let go of the host's root")?;
    chdir("/").context("enter the root")?;
    remount(
        Path::new("/"),
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn capabilities_have_the_kernels_numbers() {
        assert_eq!(
            capabilities("000000c001001000").expect("known"),
            BTreeSet::from(["BPF", "NET_ADMIN", "PERFMON", "SYS_RESOURCE"])
        );
        assert_eq!(capabilities("1ffffffffff").expect("known").len(), 41);
        assert!(
            capabilities("20000000000").is_err(),
            "a capability of a later kernel"
        );
    }

    #[test]
    fn what_is_not_played_is_refused() {
        let context = |drop: &[&str], privileged: bool| {
            json!({ "capabilities": { "add": ["BPF"], "drop": drop }, "privileged": privileged,
                "allowPrivilegeEscalation": false, "runAsUser": 0, "readOnlyRootFilesystem": true })
        };
        assert_eq!(
            kept_capabilities(&context(&["ALL"], false)).expect("played"),
            ["BPF"]
        );
        assert!(kept_capabilities(&context(&[], false)).is_err());
        assert!(kept_capabilities(&context(&["ALL"], true)).is_err());
    }
}
