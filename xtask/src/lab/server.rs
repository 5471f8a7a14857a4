//! Plays a pod: one thread that answers HTTP, TCP and UDP on given addresses with who it is and whom it sees.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use anyhow::{Context, Result};
use mio::net::{TcpListener, TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::facts::Facts;

/// Plays a pod (the lab starts this, people do not).
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
}

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

/// What a token of the event queue stands for.
enum Source {
    Listener(TcpListener, Speaks),
    Udp(UdpSocket, SocketAddr),
    Connection(Box<Connection>),
}

#[derive(Clone, Copy)]
enum Speaks {
    Http,
    Echo,
}

struct Server {
    name: String,
    poll: Poll,
    sources: Slab<Source>,
}

impl Server {
    fn bind(args: &PodServerArgs) -> Result<Self> {
        let mut server = Self { name: args.name.clone(), poll: Poll::new().context("make event queue")?, sources: Slab::new() };
        let http = args.http.iter().map(|addr| (addr, Speaks::Http));
        for (addr, speaks) in http.chain(args.tcp_echo.iter().map(|addr| (addr, Speaks::Echo))) {
            let listener = TcpListener::bind(*addr).with_context(|| format!("listen on {addr}"))?;
            server.add(Source::Listener(listener, speaks))?;
        }
        for addr in &args.udp_echo {
            let socket = UdpSocket::bind(*addr).with_context(|| format!("bind UDP {addr}"))?;
            server.add(Source::Udp(socket, *addr))?;
        }
        Ok(server)
    }

    fn add(&mut self, mut source: Source) -> Result<()> {
        let entry = self.sources.vacant_entry();
        let (token, both) = (Token(entry.key()), Interest::READABLE | Interest::WRITABLE);
        let registry = self.poll.registry();
        match &mut source {
            Source::Listener(listener, _) => registry.register(listener, token, Interest::READABLE),
            Source::Udp(socket, _) => registry.register(socket, token, Interest::READABLE),
            Source::Connection(connection) => registry.register(&mut connection.stream, token, both),
        }
        .context("watch a socket")?;
        entry.insert(source);
        Ok(())
    }

    /// Does all that can be done for one source without waiting.
    fn turn(&mut self, token: Token) -> Result<()> {
        let accepted = match self.sources.get_mut(token.0) {
            None => Vec::new(),
            Some(Source::Udp(socket, local)) => {
                echo_datagrams(&self.name, socket, *local);
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
        accepted.into_iter().try_for_each(|connection| self.add(Source::Connection(Box::new(connection))))
    }
}

fn accept(name: &str, listener: &TcpListener, speaks: Speaks) -> Vec<Connection> {
    let streams = std::iter::from_fn(|| listener.accept().ok());
    streams.filter_map(|(stream, client)| Connection::new(name, stream, client, speaks).ok()).collect()
}

fn echo_datagrams(name: &str, socket: &UdpSocket, local: SocketAddr) {
    let mut buffer = [0; 65536];
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        let mut answer = format!("{}\n", Facts::new(name, client, local)).into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        // A full queue loses datagrams, as UDP does.
        let _ = socket.send_to(&answer, client);
    }
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
        Ok(Self { stream, speaks, facts, input: Vec::new(), output, last: false })
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
    let wanted = path.strip_prefix("/bytes/").and_then(|n| n.parse::<usize>().ok());
    let body = match wanted {
        Some(n) => vec![b'x'; n.min(MOST_BYTES)],
        None => facts.as_bytes().to_vec(),
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.into_bytes(), body].concat()
}
