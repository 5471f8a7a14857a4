//! The log of the packet path: which flows the programs open and which packets they stop, in words.
//! Compiled out unless the filter asks for it.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use nix::net::if_::if_indextoname;
use proxy_common::net::Protocol;
use proxy_common::reason::Reason;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::Level;

/// The global that holds the level up to which the programs log.
pub const LEVEL: &str = aya_log::LEVEL;

/// The level that the programs are to log at, by the filter of this process: `--log
/// info,portway::packets=debug`.
pub fn level() -> u8 {
    if tracing::enabled!(target: "portway::packets", Level::DEBUG) {
        aya_log::Level::Debug as u8
    } else {
        0
    }
}

/// The stream of the programs' log records.
pub struct PacketLog(EbpfLogger<InWords>);

impl PacketLog {
    /// Opens the log of loaded programs.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self> {
        EbpfLogger::init_with_logger(ebpf, InWords)
            .map(Self)
            .context("open the packet path's log")
    }

    /// Writes records to the log until the agent ends.
    pub async fn run(self) -> Result<()> {
        // SAFETY: the ring buffer's descriptor is open for as long as the logger that it belongs
        // to, which this moves in.
        let log = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) };
        let mut log = log.context("wait for the packet path's log")?;
        loop {
            let mut ready = log
                .readable_mut()
                .await
                .context("wait for the packet path's log")?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}

/// Logs lines with names in place of numbers: the programs have no names.
struct InWords;

impl Log for InWords {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }
    fn log(&self, record: &Record) {
        tracing::debug!(target: "portway::packets", "{}", in_words(&record.args().to_string()));
    }
    fn flush(&self) {}
}

fn in_words(line: &str) -> String {
    let words: Vec<_> = line
        .split(' ')
        .map(|word| in_word(word).unwrap_or_else(|| word.to_owned()))
        .collect();
    words.join(" ")
}

fn in_word(word: &str) -> Option<String> {
    let (kind, number) = word.split_once('#')?;
    let end = number
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(number.len());
    let (number, rest) = number.split_at(end);
    let number: u32 = number.parse().ok()?;
    let name = match kind {
        "reason" => Reason::ALL.get(number as usize)?.name().to_owned(),
        "protocol" => Protocol(u8::try_from(number).ok()?).name().to_owned(),
        "device" => if_indextoname(number).map_or_else(
            |_| word.to_owned(),
            |name| name.to_string_lossy().into_owned(),
        ),
        _ => return None,
    };
    Some(name + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_words() {
        let line = format!(
            "device#1: protocol#17 192.0.2.1 port 9: stopped, reason#{}",
            Reason::NoBackend as u32
        );
        assert_eq!(
            in_words(&line),
            "lo: UDP 192.0.2.1 port 9: stopped, no_backend"
        );
        assert_eq!(
            in_words("reason#999 protocol#x #"),
            "reason#999 protocol#x #"
        );
    }
}
