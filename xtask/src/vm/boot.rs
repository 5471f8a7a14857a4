//! qemu: boots a kernel with an initramfs, shows its console, and reads from it how the program
//! ended.

use crate::counts::Counts;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// An emulated machine is some twenty times slower than the host.
const LIMIT: Duration = Duration::from_secs(1200);

/// The console's output.
#[derive(Debug, Default)]
pub struct Outcome {
    /// `uname -r` inside.
    pub kernel: Option<String>,
    /// The program's exit status; `None` if the machine ended before it.
    pub status: Option<i32>,
    /// Tests that passed.
    pub passed: u32,
}

impl Outcome {
    /// Reads a whole console.
    #[cfg(test)]
    pub fn read(console: &str) -> Self {
        let mut outcome = Self::default();
        console.lines().for_each(|line| outcome.take(line));
        outcome
    }

    fn take(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(kernel) = line.strip_prefix("vm: kernel ") {
            self.kernel = Some(kernel.to_owned());
        } else if let Some(status) = line.strip_prefix("vm: exit status ") {
            self.status = status.parse().ok();
        } else if let Some(counts) = Counts::read(line) {
            self.passed += counts.passed;
        }
    }
}

/// Boots and waits until the machine turns itself off; the console also goes into `log`.
pub fn run(image: &Path, initramfs: &Path, log: &Path) -> Result<Outcome> {
    let mut log = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let mut machine = Machine(
        qemu(image, initramfs)
            .spawn()
            .context("start qemu-system-x86_64")?,
    );
    let console = console(&mut machine.0)?;
    let end = Instant::now() + LIMIT;
    let mut outcome = Outcome::default();
    loop {
        match console.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("  | {line}");
                writeln!(log, "{line}").context("write the console's log")?;
                outcome.take(&line);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(outcome),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the machine did not end within {} s", LIMIT.as_secs())
            }
        }
    }
}

/// Emulated on purpose: it needs no /dev/kvm, and is the same machine everywhere.
///
/// Without cmpxchg16b: qemu 7.2's emulation of it sometimes leaves the flags register broken, which
/// ends 6.12 in a double fault within kmalloc; the kernel then takes another way.
fn qemu(image: &Path, initramfs: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg",
        "-cpu",
        "max,-cx16",
        "-smp",
        "2",
        "-m",
        "2048",
        "-nographic",
        "-no-reboot",
        "-nic",
        "none",
    ]);
    qemu.arg("-kernel").arg(image).arg("-initrd").arg(initramfs);
    qemu.args([
        "-append",
        "console=ttyS0 quiet loglevel=4 panic=-1 random.trust_cpu=on",
    ]);
    qemu.stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    qemu
}

/// Lines of the console; the channel closes when the machine ends.
fn console(machine: &mut Child) -> Result<Receiver<String>> {
    let stdout = machine.stdout.take().context("read the console")?;
    let (send, lines) = mpsc::channel();
    thread::spawn(move || {
        // The firmware writes bytes that are no text.
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = printable(&String::from_utf8_lossy(&line));
            if !line.is_empty() && send.send(line).is_err() {
                return;
            }
        }
    });
    Ok(lines)
}

/// Without what moves a terminal's cursor or clears it.
fn printable(line: &str) -> String {
    let mut shown = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => while chars.next().is_some_and(|c| !c.is_ascii_alphabetic()) {},
            c if c.is_control() && c != '\t' => {}
            c => shown.push(c),
        }
    }
    shown
}

/// A qemu that does not outlive us.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already; then both say so, and that is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_codes_of_the_firmware_are_not_shown() {
        assert_eq!(
            printable("\u{1b}c\u{1b}[?7l\u{1b}[2J\u{1b}[0mSeaBIOS\r"),
            "SeaBIOS"
        );
    }
}
