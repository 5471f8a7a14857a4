//! Plays a pod: one thread that answers HTTP, TCP and UDP on given addresses with its name and the
//! client address that it sees.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use anyhow::{Context, Result};
use mio::net::{TcpListener, TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::{Backlog, listen};
use slab::Slab;

use super::dns::{self, Record};
use super::facts::Facts;

/// Play a pod (started by the lab)
#[derive(clap::Args, Clone, Debug, Default)]
pub struct PodServerArgs {
    /// The name to answer with.
    #[arg(long)]
    pub name: String,
    /// Addresses to serve HTTP/1.1 on.
    #[arg(long)]
    pub http: Vec<SocketAddr>,
    /// Addresses to echo TCP on.
    #[arg(long)]
    pub tcp_echo: Vec<SocketAddr>,
    /// Addresses to echo UDP on.
    #[arg(long)]
    pub udp_echo: Vec<SocketAddr>,
    /// Addresses to serve DNS on.
    #[arg(long)]
    pub dns: Vec<SocketAddr>,
    /// DNS records, as `NAME=ADDRESS`.
    #[arg(long)]
    pub record: Vec<Record>,
}

/// Length of the accept queue: connections wait for as long as another process has the CPU. The
/// kernel allows no more.
const WAITING: i32 = 4096;

/// Serves until killed; prints a line when all addresses are served.
///
/// # Errors
/// If an address cannot be bound, or the kernel's event queue fails.
pub fn serve(args: &PodServerArgs) -> Result<()> {
    let mut server = Server::bind(args)?;
    println!("ready");
    let mut events = Events::with_capacity(1024);
    loop {
        match server.poll.poll(&mut events, None) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            other => other.context("wait for events")?,
        }
        for event in &events {
            server.turn(event.token())?;
        }
    }
}

/// The source behind a token of the event queue.
enum Source {
    Listener(TcpListener, Speaks),
    Udp(UdpSocket, SocketAddr, Talks),
    Connection(Box<Connection>),
}

#[derive(Clone, Copy)]
enum Speaks {
    Http,
    Echo,
}

#[derive(Clone, Copy)]
enum Talks {
    Echo,
    Dns,
}

struct Server {
    name: String,
    records: BTreeSet<Record>,
    poll: Poll,
    sources: Slab<Source>,
}

impl Server {
    fn bind(args: &PodServerArgs) -> Result<Self> {
        let records = args.record.iter().cloned().collect();
        let poll = Poll::new().context("make event queue")?;
        let mut server = Self {
            name: args.name.clone(),
            records,
            poll,
            sources: Slab::new(),
        };
        let http = args.http.iter().map(|addr| (addr, Speaks::Http));
        for (addr, speaks) in http.chain(args.tcp_echo.iter().map(|addr| (addr, Speaks::Echo))) {
            let listener = TcpListener::bind(*addr).with_context(|| format!("listen on {addr}"))?;
            listen(&listener, Backlog::new(WAITING)?)
                .with_context(|| format!("let {WAITING} connections to {addr} wait"))?;
            server.add(Source::Listener(listener, speaks))?;
        }
        let echo = args.udp_echo.iter().map(|addr| (addr, Talks::Echo));
        for (addr, talks) in echo.chain(args.dns.iter().map(|addr| (addr, Talks::Dns))) {
            let socket = UdpSocket::bind(*addr).with_context(|| format!("bind UDP {addr}"))?;
            server.add(Source::Udp(socket, *addr, talks))?;
        }
        Ok(server)
    }

    fn add(&mut self, mut source: Source) -> Result<()> {
        let entry = self.sources.vacant_entry();
        let (token, both) = (Token(entry.key()), Interest::READABLE | Interest::WRITABLE);
        let registry = self.poll.registry();
        match &mut source {
            Source::Listener(listener, _) => registry.register(listener, token, Interest::READABLE),
            Source::Udp(socket, ..) => registry.register(socket, token, Interest::READABLE),
            Source::Connection(connection) => {
                registry.register(&mut connection.stream, token, both)
            }
        }
        .context("watch a socket")?;
        entry.insert(source);
        Ok(())
    }

    /// Does all that can be done for one source without waiting.
    fn turn(&mut self, token: Token) -> Result<()> {
        let accepted = match self.sources.get_mut(token.0) {
            None => Vec::new(),
            Some(Source::Udp(socket, local, talks)) => {
                answer_datagrams(socket, |datagram: &[u8], client: SocketAddr| match talks {
                    Talks::Echo => Some(echo(&self.name, datagram, client, *local)),
                    Talks::Dns => dns::answer(datagram, &self.records),
                });
                Vec::new()
            }
            Some(Source::Listener(listener, speaks)) => accept(&self.name, listener, *speaks),
            Some(Source::Connection(connection)) => {
                if connection.advance().is_err() {
                    self.sources.remove(token.0);
                }
                Vec::new()
            }
        };
        accepted
            .into_iter()
            .try_for_each(|connection| self.add(Source::Connection(Box::new(connection))))
    }
}

fn accept(name: &str, listener: &TcpListener, speaks: Speaks) -> Vec<Connection> {
    let streams = std::iter::from_fn(|| listener.accept().ok());
    streams
        .filter_map(|(stream, client)| Connection::new(name, stream, client, speaks).ok())
        .collect()
}

fn answer_datagrams(socket: &UdpSocket, reply: impl Fn(&[u8], SocketAddr) -> Option<Vec<u8>>) {
    let mut buffer = [0; 65536];
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        // A full queue loses datagrams, as UDP does.
        let _ = reply(&buffer[..length], client).map(|reply| socket.send_to(&reply, client));
    }
}

fn echo(name: &str, datagram: &[u8], client: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let mut answer = format!("{}\n", Facts::new(name, client, local)).into_bytes();
    answer.extend_from_slice(datagram);
    answer
}

/// A TCP connection with what was read and not yet understood, and what is to be written.
struct Connection {
    stream: TcpStream,
    speaks: Speaks,
    facts: String,
    input: Vec<u8>,
    output: Vec<u8>,
    last: bool,
}

impl Connection {
    fn new(name: &str, stream: TcpStream, client: SocketAddr, speaks: Speaks) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let facts = format!("{}\n", Facts::new(name, client, stream.local_addr()?));
        let output = match speaks {
            Speaks::Http => Vec::new(),
            Speaks::Echo => facts.clone().into_bytes(),
        };
        Ok(Self {
            stream,
            speaks,
            facts,
            input: Vec::new(),
            output,
            last: false,
        })
    }

    /// Reads, answers and writes until it would wait; an error means that the connection is over.
    fn advance(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16384];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.last = true,
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
            if self.last {
                break;
            }
        }
        self.answer();
        self.flush()
    }

    fn answer(&mut self) {
        match self.speaks {
            Speaks::Echo => self.output.append(&mut self.input),
            Speaks::Http => {
                while let Some(end) = self.input.windows(4).position(|w| w == b"\r\n\r\n") {
                    let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
                    self.input.drain(..end + 4);
                    self.output.extend(response(&head, &self.facts));
                    self.last |= head.to_ascii_lowercase().contains("connection: close");
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        while written < self.output.len() {
            match self.stream.write(&self.output[written..]) {
                Ok(length) => written += length,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        self.output.drain(..written);
        match self.last && self.output.is_empty() {
            true => Err(ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }
}

/// The most that `/bytes/N` answers.
const MOST_BYTES: usize = 16 << 20;

/// The answer to a request without a body: the facts, or as many bytes as `/bytes/N` asks for.
fn response(head: &str, facts: &str) -> Vec<u8> {
    let path = head.split_whitespace().nth(1).unwrap_or("/");
    let wanted = path
        .strip_prefix("/bytes/")
        .and_then(|n| n.parse::<usize>().ok());
    let body = match wanted {
        Some(n) => vec![b'x'; n.min(MOST_BYTES)],
        None => facts.as_bytes().to_vec(),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}
