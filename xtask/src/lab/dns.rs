//! Owns as much DNS as a cluster's pods need: names to addresses, asked and answered over UDP.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use super::family::Family;
use super::probe::PATIENCE;

/// A name and one of its addresses, written `NAME=ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// The full name, without the dot at the end.
    pub name: String,
    /// The address.
    pub address: IpAddr,
}

impl FromStr for Record {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, address) = text
            .split_once('=')
            .with_context(|| format!("find = in {text:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            address: address
                .parse()
                .with_context(|| format!("read address {address:?}"))?,
        })
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.name, self.address)
    }
}

const HEADER: usize = 12;
const RESPONSE: u16 = 0x8180;
const NO_SUCH_NAME: u16 = 0x8183;

/// The answer to `query`, if that is a question for one name.
pub fn answer(query: &[u8], records: &BTreeSet<Record>) -> Option<Vec<u8>> {
    let (name, end) = question(query)?;
    let wanted = u16::from_be_bytes([*query.get(end - 4)?, *query.get(end - 3)?]);
    let named: Vec<&Record> = records
        .iter()
        .filter(|record| record.name.eq_ignore_ascii_case(&name))
        .collect();
    let found: Vec<IpAddr> = named
        .iter()
        .map(|record| record.address)
        .filter(|ip| record_type(ip) == wanted)
        .collect();
    let flags = if named.is_empty() {
        NO_SUCH_NAME
    } else {
        RESPONSE
    };
    let mut reply = query[..2].to_vec();
    for field in [flags, 1, found.len() as u16, 0, 0] {
        reply.extend(field.to_be_bytes());
    }
    reply.extend(&query[HEADER..end]);
    found.iter().for_each(|ip| append_address(&mut reply, ip));
    Some(reply)
}

/// The name asked for, and where the question ends.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        match length {
            0 => break,
            // Longer ones are pointers, which no question has.
            1..64 => labels.push(String::from_utf8_lossy(query.get(at..at + length)?).into_owned()),
            _ => return None,
        }
        at += length;
    }
    (query.len() >= at + 4).then(|| (labels.join("."), at + 4))
}

fn record_type(ip: &IpAddr) -> u16 {
    match ip {
        IpAddr::V4(_) => 1,
        IpAddr::V6(_) => 28,
    }
}

fn append_address(reply: &mut Vec<u8>, ip: &IpAddr) {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    // The name is that of the question, at offset 12; class IN; five seconds to live, as cluster
    // DNS has.
    for field in [0xc00c, record_type(ip), 1, 0, 5, octets.len() as u16] {
        reply.extend(field.to_be_bytes());
    }
    reply.extend(octets);
}

/// Asks `server` for the address of `name`, from the calling thread's namespace.
///
/// # Errors
/// If there is no answer in time, or none with an address of this family.
pub fn resolve(server: SocketAddr, name: &str, family: Family) -> Result<IpAddr> {
    let kind: u16 = match family {
        Family::V4 => 1,
        Family::V6 => 28,
    };
    let mut query = vec![0x70, 0x77, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend([kind, 1].map(u16::to_be_bytes).concat());
    let reply = exchange(server, &query).with_context(|| format!("ask {server} for {name}"))?;
    ensure!(
        reply.starts_with(&query[..2]),
        "the answer is to another question"
    );
    // Our server puts the one address last.
    match (family, reply.last_chunk::<4>(), reply.last_chunk::<16>()) {
        _ if reply.get(6..8) == Some(&[0, 0]) || reply.len() <= query.len() => {
            bail!("{server} returned no address for {name}")
        }
        (Family::V4, Some(octets), _) => Ok(IpAddr::from(*octets)),
        (Family::V6, _, Some(octets)) => Ok(IpAddr::from(*octets)),
        _ => bail!("the answer is too short"),
    }
}

fn exchange(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    })?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(query)?;
    let mut reply = vec![0; 512];
    let length = socket.recv(&mut reply)?;
    reply.truncate(length);
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_and_another_is_not() {
        let records = BTreeSet::from(["web.default.svc=10.96.0.7".parse().expect("record")]);
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\x07default\x03svc\0\0\x01\0\x01";
        let reply = answer(query, &records).expect("answer");
        assert_eq!(&reply[..8], b"\x12\x34\x81\x80\0\x01\0\x01");
        assert!(reply.ends_with(&[0, 4, 10, 96, 0, 7]));
        let other = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03foo\0\0\x01\0\x01";
        assert_eq!(
            &answer(other, &records).expect("answer")[..8],
            b"\x12\x34\x81\x83\0\x01\0\0"
        );
        assert_eq!(answer(b"\x12\x34", &records), None);
    }
}
