//! SCTP associations (RFC 9260) of crafted packets over raw sockets, for kernels without SCTP: both
//! ends say all that an association's life has.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::facts::Facts;
use super::netns::Namespace;

/// Time limit for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// SCTP's number.
const SCTP: i32 = 132;
/// Bytes of the common header.
const HEADER: usize = 12;
/// Bytes of a DATA chunk before its data.
pub const DATA_HEADER: usize = 16;

/// Types of chunks.
mod kind {
    pub const DATA: u8 = 0;
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const SACK: u8 = 3;
    pub const HEARTBEAT: u8 = 4;
    pub const HEARTBEAT_ACK: u8 = 5;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const COOKIE_ECHO: u8 = 10;
    pub const COOKIE_ACK: u8 = 11;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// A packet of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    from: u16,
    to: u16,
    tag: u32,
    kind: u8,
    body: Vec<u8>,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.from.to_be_bytes());
        bytes.extend(self.to.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        let flags = if self.kind == kind::DATA { 3 } else { 0 };
        bytes.extend([self.kind, flags]);
        bytes.extend((4 + self.body.len() as u16).to_be_bytes());
        bytes.extend(&self.body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let crc = crc32c::crc32c(&bytes);
        bytes[8..HEADER].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Parses a packet; `None` unless it is whole and its checksum is right.
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut zeroed = bytes.to_vec();
        zeroed.get_mut(8..HEADER)?.fill(0);
        let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let short = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let length = usize::from(short(HEADER + 2)?);
        let right = word(8)?.swap_bytes() == crc32c::crc32c(&zeroed);
        let body = bytes.get(HEADER + 4..HEADER + length)?.to_vec();
        right.then_some(Self {
            from: short(0)?,
            to: short(2)?,
            tag: word(4)?,
            kind: bytes[HEADER],
            body,
        })
    }
}

/// A raw socket of one family.
struct Raw {
    socket: UdpSocket,
    v4: bool,
}

impl Raw {
    /// The standard library has none of its own, but moves datagrams by whatever socket it is
    /// given.
    fn open(v4: bool) -> Result<Self> {
        let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP)))?;
        socket.set_recv_buffer_size(1 << 20)?;
        Ok(Self {
            socket: socket.into(),
            v4,
        })
    }

    /// The next packet to a port, and who sent it.
    fn receive(&self, port: u16) -> Result<(Packet, IpAddr)> {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = vec![0; 1 << 16];
        loop {
            let (length, from) = self.socket.recv_from(&mut bytes)?;
            // IPv4's raw sockets give the header too.
            let header = if self.v4 {
                usize::from(bytes[0] & 15) * 4
            } else {
                0
            };
            if let Some(packet) = bytes
                .get(header..length)
                .and_then(Packet::read)
                .filter(|packet| packet.to == port)
            {
                return Ok((packet, from.ip()));
            }
            if Instant::now() > deadline {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }

    fn send(&self, to: IpAddr, packet: &Packet) -> Result<()> {
        self.socket.send_to(&packet.bytes(), (to, 0)).map(drop)
    }
}

/// Answers associations at `port` in the namespace of the pod `name`, by both families, until this
/// process ends.
pub fn start(name: &str, ns: &Namespace, port: u16) {
    for v4 in [true, false] {
        let name = name.to_owned();
        _ = ns.start(move || Ok(serve(&name, port, v4)?));
    }
}

/// Answers associations at `port` of one family for ever: DATA comes back, with the [`Facts`] of
/// the pod `name` and a line's end over its begin.
fn serve(name: &str, port: u16, v4: bool) -> Result<()> {
    let raw = Raw::open(v4)?;
    // By the other end: its tag, and the one that we gave it.
    let mut known: HashMap<(IpAddr, u16), (u32, u32)> = HashMap::new();
    loop {
        let (packet, from) = match raw.receive(port) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::TimedOut => continue,
            Err(error) => return Err(error),
        };
        let peer = (from, packet.from);
        if packet.kind == kind::INIT {
            let Some(theirs) = packet.body.first_chunk::<4>() else {
                continue;
            };
            let ours = crc32c::crc32c(format!("{name} {peer:?} {}", known.len()).as_bytes()) | 1;
            known.insert(peer, (u32::from_be_bytes(*theirs), ours));
            let cookie = [&0x0007_0008_u32.to_be_bytes()[..], &ours.to_be_bytes()].concat();
            let body = [&ours.to_be_bytes()[..], &packet.body[4..], &cookie].concat();
            raw.send(
                from,
                &Packet {
                    from: port,
                    to: packet.from,
                    tag: u32::from_be_bytes(*theirs),
                    kind: kind::INIT_ACK,
                    body,
                },
            )?;
            continue;
        }
        let Some((theirs, ours)) = known.get(&peer).copied() else {
            continue;
        };
        if packet.tag != ours {
            continue;
        }
        let answer = |kind, body: &[u8]| Packet {
            from: port,
            to: packet.from,
            tag: theirs,
            kind,
            body: body.to_vec(),
        };
        match packet.kind {
            kind::COOKIE_ECHO => raw.send(from, &answer(kind::COOKIE_ACK, &[]))?,
            kind::HEARTBEAT => raw.send(from, &answer(kind::HEARTBEAT_ACK, &packet.body))?,
            kind::SHUTDOWN => raw.send(from, &answer(kind::SHUTDOWN_ACK, &[]))?,
            kind::SHUTDOWN_COMPLETE => drop(known.remove(&peer)),
            kind::DATA => {
                raw.send(from, &answer(kind::SACK, &sack(&packet.body)))?;
                // As long as what came, so that both ways carry packets of all sizes.
                let here = SocketAddr::new(
                    if v4 {
                        Ipv4Addr::UNSPECIFIED.into()
                    } else {
                        Ipv6Addr::UNSPECIFIED.into()
                    },
                    port,
                );
                let facts = format!(
                    "{}\n",
                    Facts::new(name, SocketAddr::new(from, packet.from), here)
                );
                let mut body = packet.body.clone();
                body.iter_mut()
                    .skip(DATA_HEADER - 4)
                    .zip(facts.bytes())
                    .for_each(|(byte, said)| *byte = said);
                raw.send(from, &answer(kind::DATA, &body))?;
            }
            _ => {}
        }
    }
}

/// The body of a SACK of everything up to a DATA chunk with this body.
fn sack(data: &[u8]) -> Vec<u8> {
    [&data[..4], &65_536_u32.to_be_bytes(), &[0; 4]].concat()
}

/// Lives through an association from `port` of this host: set-up, DATA of these sizes, a heartbeat
/// after each, and shutdown.
///
/// # Errors
/// `TimedOut` where an answer does not come, or comes wrong; `InvalidData` if data comes back as other data, or none is long enough to tell who
/// answers.
pub fn associate(port: u16, addr: SocketAddr, sizes: &[usize]) -> Result<Facts> {
    let raw = Raw::open(addr.is_ipv4())?;
    // From nobody else from here on.
    raw.socket.connect((addr.ip(), 0))?;
    raw.socket.set_read_timeout(Some(PATIENCE))?;
    let mine = u32::from(port) << 8 | 1;
    let send = |tag, kind, body: &[u8]| {
        let packet = Packet {
            from: port,
            to: addr.port(),
            tag,
            kind,
            body: body.to_vec(),
        };
        raw.socket.send(&packet.bytes()).map(drop)
    };
    let expect = |kind| -> Result<Packet> {
        loop {
            let (packet, _) = raw
                .receive(port)
                .map_err(|error| Error::new(timed_out(&error), format!("chunk {kind}: {error}")))?;
            if packet.tag == mine && packet.kind == kind && packet.from == addr.port() {
                return Ok(packet);
            }
        }
    };
    let streams_and_tsn = [0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    send(
        0,
        kind::INIT,
        &[&mine.to_be_bytes()[..], &streams_and_tsn].concat(),
    )?;
    let init_ack = expect(kind::INIT_ACK)?;
    let short = || Error::from(ErrorKind::InvalidData);
    let theirs = u32::from_be_bytes(*init_ack.body.first_chunk().ok_or_else(short)?);
    // The parameter's header before it is none of the cookie.
    send(
        theirs,
        kind::COOKIE_ECHO,
        init_ack.body.get(20..).ok_or_else(short)?,
    )?;
    expect(kind::COOKIE_ACK)?;
    let mut facts = None;
    for (tsn, size) in (1_u32..).zip(sizes) {
        let data: Vec<u8> = (0..*size).map(|at| (at % 251) as u8).collect();
        send(
            theirs,
            kind::DATA,
            &[&tsn.to_be_bytes()[..], &[0; 8], &data].concat(),
        )?;
        expect(kind::SACK)?;
        let back = expect(kind::DATA)?;
        send(theirs, kind::SACK, &sack(&back.body))?;
        let (head, told) = back.body.split_at(DATA_HEADER - 4);
        let line = told.iter().position(|byte| *byte == b'\n');
        let said = line.unwrap_or(told.len());
        if told.len() != *size
            || told.get(said + 1..) != data.get(said + 1..)
            || head[..4] != tsn.to_be_bytes()
        {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("{size} bytes came back as others"),
            ));
        }
        facts = facts.or(line.and_then(|end| String::from_utf8_lossy(&told[..end]).parse().ok()));
        send(theirs, kind::HEARTBEAT, &[0, 1, 0, 8, 1, 2, 3, 4])?;
        expect(kind::HEARTBEAT_ACK)?;
    }
    send(theirs, kind::SHUTDOWN, &(sizes.len() as u32).to_be_bytes())?;
    expect(kind::SHUTDOWN_ACK)?;
    send(theirs, kind::SHUTDOWN_COMPLETE, &[])?;
    facts.ok_or_else(short)
}

fn timed_out(error: &Error) -> ErrorKind {
    if error.kind() == ErrorKind::WouldBlock {
        ErrorKind::TimedOut
    } else {
        error.kind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_read_as_it_was_and_not_if_a_bit_is_wrong() {
        let packet = Packet {
            from: 40000,
            to: 9999,
            tag: 7,
            kind: kind::DATA,
            body: vec![1; 17],
        };
        let mut bytes = packet.bytes();
        assert_eq!(
            (bytes.len(), Packet::read(&bytes).as_ref()),
            (36, Some(&packet))
        );
        bytes[20] ^= 1;
        assert_eq!(Packet::read(&bytes), None);
    }
}
