//! Asks a server once or many times from the calling thread's namespace. A refusal and a missing
//! answer are different outcomes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use super::facts::Facts;
use super::sctp;

mod answer;
mod tally;

pub use answer::Answer;
pub use tally::Tally;

/// Time that a probe waits for a connection, and again for its answer.
pub const PATIENCE: Duration = Duration::from_millis(700);

/// The protocol of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// An HTTP request on a connection of its own.
    Http,
    /// The first line of a TCP echo server.
    TcpEcho,
    /// A datagram.
    Udp,
    /// An HTTP response that takes many segments of any path's size.
    Bulk,
    /// A datagram of several fragments, and one back.
    LargeUdp,
    /// An SCTP association of crafted packets.
    Sctp,
}

/// Size of a bulk response, in bytes.
const BULK: usize = 100_000;
/// Size of a large datagram without the report, in bytes.
const LARGE: usize = 4000;

/// Asks once.
pub fn ask(kind: Kind, addr: SocketAddr) -> Answer {
    match kind {
        Kind::Http => Session::open(addr).and_then(|mut session| session.ask()),
        Kind::TcpEcho => tcp_echo(addr),
        Kind::Udp => udp(addr),
        Kind::Bulk => bulk(addr),
        // The first may be lost while the sender learns the path's MTU.
        Kind::LargeUdp => large_udp(addr)
            .or_else(|_| large_udp(addr))
            .or_else(|_| large_udp(addr)),
        Kind::Sctp => sctp::associate(own_port(), addr, &[200, 1000]),
    }
    .map_or_else(Answer::from_error, Answer::Served)
}

/// A port that this process has not used yet.
fn own_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    20_000 + (std::process::id() as u16 ^ NEXT.fetch_add(1, Ordering::Relaxed)) % 40_000
}

/// Asks over HTTP on a connection of its own.
pub fn http(addr: SocketAddr) -> Answer {
    ask(Kind::Http, addr)
}

/// So many probes in a row without an answer end a survey: the rest would only cost time.
pub const SILENCE: usize = 5;

/// Asks `count` times, each time as a new client, or until [`SILENCE`] probes in a row have timed
/// out.
pub fn answers(kind: Kind, addr: SocketAddr, count: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    while answers.len() < count && !answers.ends_with(&[const { Answer::TimedOut }; SILENCE]) {
        answers.push(ask(kind, addr));
    }
    answers
}

/// Counts the outcomes of [`answers`].
pub fn survey(kind: Kind, addr: SocketAddr, count: usize) -> Tally {
    answers(kind, addr, count).into_iter().collect()
}

/// An HTTP connection that is kept open, as a flow that has to survive.
#[derive(Debug)]
pub struct Session(TcpStream);

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// If that is refused or times out.
    pub fn open(addr: SocketAddr) -> io::Result<Self> {
        connect(addr).map(Self)
    }

    /// Sets the timeout of each read to `patience`, for slow machines.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn patient(self, patience: Duration) -> io::Result<Self> {
        self.0.set_read_timeout(Some(patience))?;
        Ok(self)
    }

    /// Asks on this connection.
    ///
    /// # Errors
    /// If the connection has ended, or nothing is answered in time.
    pub fn ask(&mut self) -> io::Result<Facts> {
        parse_facts(&self.get("/")?)
    }

    /// Fetches `path` and gives the body.
    ///
    /// # Errors
    /// If the connection has ended, or nothing is answered in time.
    pub fn get(&mut self, path: &str) -> io::Result<Vec<u8>> {
        self.0
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n").as_bytes())?;
        let mut reply = Vec::new();
        let mut buffer = [0; 65536];
        loop {
            if let Some(whole) = body(&reply)? {
                return Ok(whole.to_vec());
            }
            match self.0.read(&mut buffer)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                length => reply.extend_from_slice(&buffer[..length]),
            }
        }
    }
}

/// The body of an HTTP response, once all of it is there.
///
/// # Errors
/// If the response does not say how long it is.
pub fn body(reply: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some(end) = reply.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&reply[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| {
        line.strip_prefix("content-length: ")?
            .trim()
            .parse::<usize>()
            .ok()
    });
    let length = length
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "response without Content-Length"))?;
    Ok(reply.get(end + 4..end + 4 + length))
}

fn parse_facts(text: &[u8]) -> io::Result<Facts> {
    String::from_utf8_lossy(text)
        .parse()
        .map_err(|e: anyhow::Error| io::Error::new(ErrorKind::InvalidData, format!("{e:#}")))
}

/// Returns true if a TCP connection is refused within `patience`.
///
/// Linux heeds an ICMPv6 error for a SYN only if no call holds the socket. Over veth the error is
/// back before `connect` has let go; the second SYN, a second later, is refused.
pub fn is_refused(addr: SocketAddr, patience: Duration) -> bool {
    TcpStream::connect_timeout(&addr, patience)
        .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn tcp_echo(addr: SocketAddr) -> io::Result<Facts> {
    let mut stream = connect(addr)?;
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    let facts = parse_facts(&line)?;
    stream.write_all(b"echo")?;
    let mut echo = [0; 4];
    stream.read_exact(&mut echo)?;
    match &echo {
        b"echo" => Ok(facts),
        _ => Err(io::Error::new(ErrorKind::InvalidData, "the echo differs")),
    }
}

fn udp(addr: SocketAddr) -> io::Result<Facts> {
    udp_from(0, addr)
}

fn bulk(addr: SocketAddr) -> io::Result<Facts> {
    let mut session = Session::open(addr)?;
    let facts = session.ask()?;
    match session.get(&format!("/bytes/{BULK}"))?.len() {
        BULK => Ok(facts),
        other => Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("{other} bytes instead of {BULK}"),
        )),
    }
}

fn large_udp(addr: SocketAddr) -> io::Result<Facts> {
    let socket = udp_socket(0, addr)?;
    let sent: Vec<u8> = [
        b"large\n".to_vec(),
        (0..LARGE).map(|at| (at % 251) as u8).collect(),
    ]
    .concat();
    socket.send(&sent)?;
    let mut buffer = [0; 2 * LARGE];
    let length = socket.recv(&mut buffer)?;
    let at = buffer[..length]
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(length);
    let facts = parse_facts(&buffer[..at])?;
    match buffer[..length].ends_with(&sent) {
        true => Ok(facts),
        false => Err(io::Error::new(ErrorKind::InvalidData, "the echo differs")),
    }
}

/// Asks by UDP from a port of the caller's choice; 0 is any.
///
/// # Errors
/// If the port is taken, or nothing is answered in time.
pub fn udp_from(port: u16, addr: SocketAddr) -> io::Result<Facts> {
    let socket = udp_socket(port, addr)?;
    socket.send(b"probe\n")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    parse_facts(&buffer[..length])
}

fn udp_socket(port: u16, addr: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if addr.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, port))?;
    socket.connect(addr)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Probe from a process of its own, as a process of a node would (started by the lab)
#[derive(clap::Args, Clone, Debug)]
pub struct ProbeArgs {
    /// The protocol.
    #[arg(long, value_enum, default_value = "http")]
    pub kind: Kind,
    /// Number of probes.
    #[arg(long, default_value_t = 1)]
    pub count: usize,
    /// The address to ask.
    pub addr: SocketAddr,
}

/// Prints an answer a line.
pub fn print_answers(args: &ProbeArgs) {
    answers(args.kind, args.addr, args.count)
        .iter()
        .for_each(|answer| println!("{answer}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_given_when_it_is_whole() {
        assert_eq!(
            body(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no").expect("valid"),
            None
        );
        assert_eq!(
            body(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").expect("valid"),
            Some(&b"ok"[..])
        );
        assert!(body(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
