//! Captures frames with tcpdump, and has tcpdump judge their checksums, and tshark those of SCTP.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::netns::Namespace;
use super::process::Process;

/// Time limit for tcpdump to begin and to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// The header of an empty capture file, in bytes.
const HEADER: u64 = 24;

/// Which frames, as seen by the namespace that has the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Incoming frames.
    In,
    /// Outgoing frames.
    Out,
}

/// A running capture; dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

/// tcpdump's judgement of the frames of a capture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Number of packets with right checksums, by protocol: `tcp`, `udp`, `icmp`, `icmp6`.
    pub right: BTreeMap<&'static str, usize>,
    /// Lines about packets with wrong checksums.
    pub wrong: Vec<String>,
    /// Lines about ICMP errors that are right but quote a wrong packet: their sender may have met
    /// it before its checksum was made.
    pub quoted: Vec<String>,
    /// Number of packets that contain another one.
    pub encapsulated: usize,
    /// The longest IP packet, in bytes.
    pub longest: usize,
}

impl Capture {
    /// Captures what passes `device` (`any` for all) into a file in `dir`, and returns once it
    /// does.
    ///
    /// # Errors
    /// If tcpdump is missing or does not begin.
    pub fn start(ns: &Namespace, device: &str, direction: Direction, dir: &Path) -> Result<Self> {
        let file = dir.join(format!("{}-{device}-{direction:?}.pcap", ns.name()));
        _ = fs::remove_file(&file);
        let mut command = Command::new("tcpdump");
        // Every frame is written at once, so that none is missing when it ends.
        command.args([
            "-i",
            device,
            "-n",
            "-s",
            "0",
            "-U",
            "--immediate-mode",
            "-B",
            "16384",
            "-Z",
            "root",
            "-Q",
        ]);
        command.arg(match direction {
            Direction::In => "in",
            Direction::Out => "out",
        });
        command.arg("-w").arg(&file);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = ns.spawn(command, None)?;
        let begin = Instant::now();
        while fs::metadata(&file).map_or(0, |data| data.len()) < HEADER {
            if let Some(status) = process.ended()? {
                bail!("tcpdump at {device} ended with {status:?}");
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "tcpdump at {device} does not begin"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { process, file })
    }

    /// Ends it, and has tshark judge the SCTP packets in it: each chunk's type, and whether the
    /// packet's checksum is right.
    ///
    /// # Errors
    /// If tcpdump does not end, or tshark is missing or prints something else.
    pub fn sctp(mut self) -> Result<Vec<(u8, bool)>> {
        self.process.stop(PATIENCE)?;
        let mut command = Command::new("tshark");
        command.args([
            "-o",
            "sctp.checksum:CRC-32c",
            "-Y",
            "sctp",
            "-T",
            "fields",
            "-e",
            "sctp.chunk_type",
            "-e",
            "sctp.checksum.status",
        ]);
        let output = command
            .arg("-r")
            .arg(&self.file)
            .output()
            .context("run tshark")?;
        ensure!(
            output.status.success(),
            "tshark: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let packet = |line: &str| {
            let (chunk, status) = line.split_once('\t')?;
            Some((chunk.parse().ok()?, status == "1"))
        };
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .map(|line| packet(line).with_context(|| format!("read tshark's {line:?}")))
            .collect()
    }

    /// Ends it, and has what was captured judged.
    ///
    /// # Errors
    /// If tcpdump does not end, or cannot read what it wrote.
    pub fn judge(mut self) -> Result<Judgement> {
        self.process.stop(PATIENCE)?;
        let mut command = Command::new("tcpdump");
        let output = command
            .args(["-Z", "root", "-n", "-vv", "-t", "-r"])
            .arg(&self.file)
            .output()
            .context("run tcpdump")?;
        ensure!(
            output.status.success(),
            "tcpdump: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(Judgement::read(&String::from_utf8_lossy(&output.stdout)))
    }
}

impl Judgement {
    /// Reads what `tcpdump -vv` prints.
    fn read(text: &str) -> Self {
        const WRONG: [&str; 5] = [
            "(incorrect ->",
            "bad cksum",
            "bad udp cksum",
            "bad icmp6 cksum",
            "wrong icmp cksum",
        ];
        const RIGHT: [(&str, &str); 4] = [
            ("tcp", "(correct)"),
            ("udp", "[udp sum ok]"),
            ("icmp6", "[icmp6 sum ok]"),
            ("icmp", "proto ICMP (1)"),
        ];
        const CARRIERS: [&str; 2] = ["proto IPIP (4)", "next-header IPv6 (41)"];
        let mut found = Self::default();
        // A packet takes several lines, of which the first is not indented.
        let mut packet = String::new();
        for line in text.lines().chain([""]) {
            if line.starts_with(char::is_whitespace) {
                packet.push_str(line);
                continue;
            }
            let packet = std::mem::replace(&mut packet, line.to_owned());
            found.longest = found.longest.max(length(&packet));
            found.encapsulated += usize::from(
                CARRIERS
                    .iter()
                    .any(|mark| packet.lines().next().unwrap_or_default().contains(mark)),
            );
            // What an ICMP error quotes begins with a tab.
            let (own, quoted) = packet.split_once('\t').unwrap_or((&packet, ""));
            let wrong = |text: &str| WRONG.iter().any(|mark| text.contains(mark));
            if wrong(own) {
                found.wrong.push(packet);
            } else if wrong(quoted) {
                found.quoted.push(packet);
            } else if let Some((name, _)) = RIGHT.iter().find(|(_, mark)| packet.contains(mark)) {
                *found.right.entry(name).or_default() += 1;
            }
        }
        found
    }
}

/// Returns the length of a packet: IPv4's `length N)` at the end of its header, or IPv6's `payload
/// length: N)` plus the header.
fn length(packet: &str) -> usize {
    let number = |after: &str| {
        packet
            .split_once(after)?
            .1
            .split([')', ','])
            .next()?
            .trim()
            .parse::<usize>()
            .ok()
    };
    number("payload length: ")
        .map(|payload| payload + 40)
        .or_else(|| number(", length "))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_tcpdump_prints() {
        let text = "\
IP (tos 0x0, ttl 64, id 1, offset 0, flags [DF], proto TCP (6), length 60)
    10.0.0.1.40000 > 10.0.0.2.80: Flags [S], cksum 0x1111 (correct), seq 1, win 2, length 0
IP (tos 0x0, ttl 64, id 1, offset 0, flags [DF], proto TCP (6), length 1500)
    10.0.0.1.40000 > 10.0.0.2.80: Flags [.], cksum 0x1111 (incorrect -> 0x2222), seq 1, win 2, length 1448
IP6 (flowlabel 0x1, hlim 64, next-header UDP (17) payload length: 2008) fd00::1.53 > fd00::2.40000: [udp sum ok] UDP, length 2000
IP6 (hlim 64, next-header ICMPv6 (58) payload length: 56) fd00::1 > fd00::2: [icmp6 sum ok] ICMP6, destination unreachable
IP (tos 0x0, ttl 64, id 1, offset 0, flags [none], proto ICMP (1), length 56)
    10.0.0.1 > 10.0.0.2: ICMP 10.0.0.1 udp port 53 unreachable, length 36
IP (tos 0x0, ttl 64, id 1, offset 0, flags [none], proto ICMP (1), length 62)
    10.0.0.1 > 10.0.0.2: ICMP 10.0.0.1 udp port 53 unreachable, length 42
	IP (tos 0x0, ttl 61, id 1, offset 0, flags [DF], proto UDP (17), length 34)
    10.0.0.2.40000 > 10.0.0.1.53: [bad udp cksum 0x7b64 -> 0x1f35!] UDP, length 6
IP (tos 0x0, ttl 64, id 8080, offset 0, flags [DF], proto IPIP (4), length 80)
    10.0.0.1 > 10.0.0.2: IP (tos 0x0, ttl 64, id 1, offset 0, flags [DF], proto TCP (6), length 60)
    10.0.0.3.40000 > 10.0.0.1.80: Flags [S], cksum 0x1111 (correct), seq 1, win 2, length 0
IP (tos 0x0, ttl 64, id 1, offset 0, flags [none], proto UDP (17), length 34, bad cksum 1 (->2)!)
    10.0.0.1.1 > 10.0.0.2.2: [udp sum ok] UDP, length 6
";
        let judgement = Judgement::read(text);
        assert_eq!(
            judgement.right,
            BTreeMap::from([("tcp", 2), ("udp", 1), ("icmp6", 1), ("icmp", 1)])
        );
        assert_eq!(
            (
                judgement.wrong.len(),
                judgement.quoted.len(),
                judgement.longest
            ),
            (2, 1, 2048)
        );
        assert_eq!(judgement.encapsulated, 1);
    }
}
