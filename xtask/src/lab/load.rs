//! Owns the load generator: it sends HTTP requests at a steady rate, over kept-alive connections
//! and over new ones, and counts each failure.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::facts::Facts;
use super::probe;

mod report;

pub use report::{LoadReport, Outcome};

/// The load to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// Its destination.
    pub target: SocketAddr,
    /// Requests per second.
    pub rate: u32,
    /// For how long.
    pub duration: Duration,
    /// Connections that are opened first and kept alive to the end.
    pub kept_alive: usize,
    /// Percentage of requests that use a new connection each.
    pub fresh_percent: u32,
    /// A request without an answer for this long has failed.
    pub patience: Duration,
}

impl Load {
    /// A load of `rate` requests per second over 100 kept-alive connections; one request in five
    /// uses a new connection.
    pub fn new(target: SocketAddr, rate: u32, duration: Duration) -> Self {
        Self {
            target,
            rate,
            duration,
            kept_alive: 100,
            fresh_percent: 20,
            patience: Duration::from_secs(3),
        }
    }
}

/// Sends the load from the calling thread's namespace.
///
/// # Errors
/// If the kernel's event queue fails; failing requests are counted, not errors.
pub fn run(load: &Load) -> Result<LoadReport> {
    run_until(load, &AtomicBool::new(false))
}

/// Sends the load as [`run`] does, but no new request once `enough` is set.
///
/// # Errors
/// As those of [`run`].
pub fn run_until(load: &Load, enough: &AtomicBool) -> Result<LoadReport> {
    let mut generator = Generator::new(load)?;
    generator.open_kept_alive();
    let start = Instant::now();
    let (mut next_check, mut end) = (start, load.duration);
    loop {
        let now = Instant::now();
        let elapsed = now.duration_since(start);
        if enough.load(Ordering::Relaxed) {
            end = end.min(elapsed);
        }
        generator.send_due(elapsed.min(end), now);
        generator.receive()?;
        if now >= next_check {
            generator.drop_overdue(now);
            next_check = now + Duration::from_millis(50);
        }
        if elapsed >= end && !generator.waiting() {
            break;
        }
    }
    generator.report.elapsed = start.elapsed();
    Ok(generator.report)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    KeptAlive,
    Fresh,
}

/// A connection, and since when it waits for an answer.
struct Connection {
    stream: TcpStream,
    life: Life,
    asked: Option<Instant>,
    sent: bool,
    input: Vec<u8>,
}

struct Generator<'a> {
    load: &'a Load,
    poll: Poll,
    events: Events,
    connections: Slab<Connection>,
    idle: VecDeque<usize>,
    kept_alive: usize,
    asked: u64,
    report: LoadReport,
}

const REQUEST_KEEP: &[u8] = b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n";
const REQUEST_CLOSE: &[u8] = b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";

impl<'a> Generator<'a> {
    fn new(load: &'a Load) -> Result<Self> {
        Ok(Self {
            load,
            poll: Poll::new().context("make event queue")?,
            events: Events::with_capacity(1024),
            connections: Slab::new(),
            idle: VecDeque::new(),
            kept_alive: 0,
            asked: 0,
            report: LoadReport::default(),
        })
    }

    fn open_kept_alive(&mut self) {
        for _ in 0..self.load.kept_alive {
            let opened =
                std::net::TcpStream::connect_timeout(&self.load.target, self.load.patience)
                    .and_then(|stream| {
                        stream.set_nonblocking(true)?;
                        stream.set_nodelay(true)?;
                        self.add(TcpStream::from_std(stream), Life::KeptAlive, None)
                    });
            match opened {
                Ok(id) => {
                    self.idle.push_back(id);
                    self.kept_alive += 1;
                }
                Err(e) => self.count_failure(Life::KeptAlive, &format!("connect: {e}")),
            }
        }
    }

    fn add(
        &mut self,
        mut stream: TcpStream,
        life: Life,
        asked: Option<Instant>,
    ) -> io::Result<usize> {
        let entry = self.connections.vacant_entry();
        let id = entry.key();
        self.poll.registry().register(
            &mut stream,
            Token(id),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        entry.insert(Connection {
            stream,
            life,
            asked,
            sent: false,
            input: Vec::new(),
        });
        Ok(id)
    }

    /// Returns true if an answer is still to come.
    fn waiting(&self) -> bool {
        self.connections
            .iter()
            .any(|(_, connection)| connection.asked.is_some())
    }

    /// Sends the requests that are due after `elapsed` at the load's rate; those for which no
    /// kept-alive connection is free wait.
    fn send_due(&mut self, elapsed: Duration, now: Instant) {
        let due = (elapsed.as_secs_f64() * f64::from(self.load.rate)) as u64;
        while self.asked < due {
            let share = u64::from(self.load.fresh_percent);
            let fresh = self.kept_alive == 0 || self.asked * share % 100 < share;
            match (fresh, self.idle.pop_front()) {
                (true, idle) => {
                    idle.into_iter().for_each(|id| self.idle.push_front(id));
                    self.ask_anew(now);
                }
                (false, Some(id)) => self.ask_again(id, now),
                (false, None) => return,
            }
            self.asked += 1;
        }
    }

    fn ask_anew(&mut self, now: Instant) {
        let opened = TcpStream::connect(self.load.target)
            .and_then(|stream| self.add(stream, Life::Fresh, Some(now)));
        if let Err(e) = opened {
            self.count_failure(Life::Fresh, &format!("connect: {e}"));
        }
    }

    fn ask_again(&mut self, id: usize, now: Instant) {
        let connection = &mut self.connections[id];
        connection.asked = Some(now);
        // A request is far smaller than an empty send buffer, so that it is written whole or not at
        // all.
        if let Err(e) = connection.stream.write_all(REQUEST_KEEP) {
            self.fail(id, &e.to_string());
        }
    }

    fn receive(&mut self) -> Result<()> {
        match self
            .poll
            .poll(&mut self.events, Some(Duration::from_millis(1)))
        {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            other => other.context("wait for events")?,
        }
        let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        for id in ready {
            if let Some(connection) = self.connections.get_mut(id) {
                match connection.advance() {
                    Ok(None) => {}
                    Ok(Some(facts)) => self.answered(id, facts),
                    Err(e) => self.fail(id, &e.to_string()),
                }
            }
        }
        Ok(())
    }

    fn answered(&mut self, id: usize, facts: Facts) {
        let connection = &mut self.connections[id];
        let took = connection
            .asked
            .take()
            .map(|asked| asked.elapsed())
            .unwrap_or_default();
        let life = connection.life;
        let outcome = self.outcome(life);
        outcome.answered += 1;
        outcome.slowest = outcome.slowest.max(took);
        *self.report.by_pod.entry(facts.pod).or_default() += 1;
        match life {
            Life::KeptAlive => self.idle.push_back(id),
            Life::Fresh => drop(self.connections.remove(id)),
        }
    }

    fn fail(&mut self, id: usize, why: &str) {
        let connection = self.connections.remove(id);
        if connection.life == Life::KeptAlive {
            self.kept_alive -= 1;
            self.idle.retain(|idle| *idle != id);
        }
        self.count_failure(connection.life, why);
    }

    fn count_failure(&mut self, life: Life, why: &str) {
        *self.outcome(life).failed.entry(why.to_owned()).or_default() += 1;
    }

    fn outcome(&mut self, life: Life) -> &mut Outcome {
        match life {
            Life::KeptAlive => &mut self.report.kept_alive,
            Life::Fresh => &mut self.report.fresh,
        }
    }

    fn drop_overdue(&mut self, now: Instant) {
        let patience = self.load.patience;
        let late = |c: &Connection| {
            c.asked
                .is_some_and(|asked| now.saturating_duration_since(asked) > patience)
        };
        let overdue: Vec<usize> = self
            .connections
            .iter()
            .filter(|(_, c)| late(c))
            .map(|(id, _)| id)
            .collect();
        for id in overdue {
            let why = if self.connections[id].sent {
                "no answer"
            } else {
                "no connection"
            };
            self.fail(id, why);
        }
    }
}

impl Connection {
    /// Sends the request of a new connection, reads what has come, and gives the answer once it is
    /// whole.
    fn advance(&mut self) -> io::Result<Option<Facts>> {
        if self.life == Life::Fresh && !self.sent {
            if let Some(e) = self.stream.take_error()? {
                return Err(e);
            }
            match self.stream.write_all(REQUEST_CLOSE) {
                Err(e) if matches!(e.kind(), ErrorKind::NotConnected | ErrorKind::WouldBlock) => {
                    return Ok(None);
                }
                other => other?,
            }
            self.sent = true;
        }
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) if self.input.is_empty() => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(0) => break,
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        refuse_other_than_ok(&self.input)?;
        let facts =
            probe::body(&self.input)?.map(|body| String::from_utf8_lossy(body).parse::<Facts>());
        let facts = facts
            .transpose()
            .map_err(|e| io::Error::new(ErrorKind::InvalidData, format!("{e:#}")))?;
        if facts.is_some() {
            self.input.clear();
        }
        Ok(facts)
    }
}

/// A proxy's own answer, such as 503, is no pod's; the error names it.
fn refuse_other_than_ok(answer: &[u8]) -> io::Result<()> {
    let Some(end) = answer.windows(2).position(|w| w == b"\r\n") else {
        return Ok(());
    };
    let line = String::from_utf8_lossy(&answer[..end]);
    match line.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => Err(io::Error::new(ErrorKind::InvalidData, line.into_owned())),
    }
}
