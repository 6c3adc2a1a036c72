//! Loads a server over keep-alive connections, and prints requests a second and latencies as JSON.
//!
//! `pool-load ADDRESS MODE CONNECTIONS SECONDS [POOL]`, where MODE is `healthz` (GET of an empty
//! answer), `cycle` (acquire, then release: two requests) or `keyed` (the same with a new
//! Idempotency-Key each time). Latencies are of single requests. Speaks just enough HTTP/1.1 to cost
//! little beside the server, with which it shares the machine.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What one connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Healthz,
    Cycle,
    Keyed,
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    latencies: Vec<u32>,
}

impl Connection {
    /// Makes one request; returns the status and where the body is in the buffer.
    async fn request(&mut self, request: &[u8]) -> anyhow::Result<(u16, usize, usize)> {
        let begin = now();
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let (head, length) = loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the server hung up");
            }
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head = std::str::from_utf8(&self.buffer[..end])?;
                let length = head
                    .lines()
                    .find_map(|line| {
                        line.to_ascii_lowercase()
                            .strip_prefix("content-length:")?
                            .trim()
                            .parse()
                            .ok()
                    })
                    .unwrap_or(0);
                break (end + 4, length);
            }
        };
        while self.buffer.len() < head + length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the server hung up");
            }
        }
        let micros = u32::try_from(begin.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.latencies.push(micros);
        let status = std::str::from_utf8(&self.buffer[9..12])?.parse()?;
        Ok((status, head, head + length))
    }

    async fn cycle(&mut self, pool: &str, key: Option<u64>) -> anyhow::Result<()> {
        let body = format!("{{\"pool\":\"{pool}\",\"holder\":\"load\"}}");
        let key = key.map_or(String::new(), |n| {
            // Keys of clients are random: neighbours in time are not neighbours in order.
            format!("Idempotency-Key: {:016x}\r\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        });
        let request = format!(
            "POST /v1/leases HTTP/1.1\r\nHost: localhost\r\n{key}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, from, to) = self.request(request.as_bytes()).await?;
        if status == 503 {
            return Ok(());
        }
        if status != 201 {
            bail!("{status}: {}", String::from_utf8_lossy(&self.buffer[from..to]));
        }
        let body = &self.buffer[from..to];
        let at = find(body, b"\"id\":\"").context("no id in the answer")? + 6;
        let end = at + find(&body[at..], b"\"").context("no id in the answer")?;
        let id = std::str::from_utf8(&body[at..end])?;
        let request = format!("DELETE /v1/leases/{id} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        match self.request(request.as_bytes()).await? {
            (204, ..) => Ok(()),
            (status, ..) => bail!("release answered {status}"),
        }
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}

async fn connection(
    address: String,
    mode: Mode,
    pool: String,
    until: Instant,
    keys: Arc<AtomicU64>,
) -> anyhow::Result<Vec<u32>> {
    let stream = TcpStream::connect(&address).await?;
    stream.set_nodelay(true)?;
    let mut connection =
        Connection { stream, buffer: Vec::with_capacity(4096), latencies: Vec::new() };
    while now() < until {
        match mode {
            Mode::Healthz => {
                connection.request(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
            }
            Mode::Cycle => connection.cycle(&pool, None).await?,
            Mode::Keyed => {
                let key = keys.fetch_add(1, Ordering::Relaxed);
                connection.cycle(&pool, Some(key)).await?;
            }
        }
    }
    Ok(connection.latencies)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().with_context(|| format!("{what} is missing"));
    let address = next("ADDRESS")?;
    let mode = match next("MODE")?.as_str() {
        "healthz" => Mode::Healthz,
        "cycle" => Mode::Cycle,
        "keyed" => Mode::Keyed,
        other => bail!("`{other}` is not a mode"),
    };
    let connections: usize = next("CONNECTIONS")?.parse()?;
    let seconds: f64 = next("SECONDS")?.parse()?;
    let pool = arguments.next().unwrap_or_else(|| "bench".to_owned());
    let begin = now();
    let until = begin + Duration::from_secs_f64(seconds);
    // Keys of one run are not those of another one.
    let first = std::time::UNIX_EPOCH.elapsed()?.as_nanos();
    let keys = Arc::new(AtomicU64::new(u64::try_from(first & u128::from(u64::MAX >> 1))?));
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let (address, pool) = (address.clone(), pool.clone());
            tokio::spawn(connection(address, mode, pool, until, Arc::clone(&keys)))
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let elapsed = begin.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "an index of a share"
        )]
        let index =
            ((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1));
        f64::from(latencies.get(index).copied().unwrap_or(0)) / 1000.0
    };
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = latencies.len() as f64 / elapsed;
    let told = serde_json::json!({
        "requests": latencies.len(), "seconds": elapsed, "rate": rate,
        "p50_ms": at(0.5), "p99_ms": at(0.99), "p999_ms": at(0.999), "max_ms": at(1.0),
    });
    writeln!(std::io::stdout(), "{told}")?;
    Ok(())
}
