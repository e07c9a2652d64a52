//! The line protocol from a client's side, and the line echo: its baseline
//! over the same kind of socket.

use std::{fmt::Write as _, net::SocketAddr};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};

use crate::error::{Result, Tried as _, wrong};

/// The secret of the servers' only token, which may do everything.
pub(crate) const SECRET: &str = "bench-line-secret";
/// Lines that a pipelining client has under way at most.
const UNDER_WAY: usize = 4096;
/// Lines that it writes at once.
const CHUNK: usize = 512;

/// Answers each line with `<first word> OK` until the process is ended.
pub(crate) async fn echo(listen: SocketAddr) -> Result {
    let listener = TcpListener::bind(listen).await.tried("listen")?;
    let mut all = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.tried("accept")?;
        stream.set_nodelay(true).tried("set TCP_NODELAY")?;
        all.spawn(answer(stream));
    }
}

async fn answer(stream: TcpStream) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let (mut line, mut answers) = (String::new(), String::new());
    while read.read_line(&mut line).await.is_ok_and(|bytes| bytes > 0) {
        let word = line.split_whitespace().next().unwrap_or("");
        answers.push_str(word);
        answers.push_str(" OK\n");
        line.clear();
        // What is there already is answered by one write, as the server does.
        if !read.buffer().contains(&b'\n') {
            if write.write_all(answers.as_bytes()).await.is_err() {
                return;
            }
            answers.clear();
        }
    }
}

/// A connection that has proven who it is.
#[derive(Debug)]
pub(crate) struct Line {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    answer: String,
}

impl Line {
    /// Connects and authenticates; the echo answers that with OK too.
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        let mut line = Self::open(address).await?;
        line.write.write_all(format!("AUTH {SECRET}\n").as_bytes()).await.tried("AUTH")?;
        let answer = line.read_line().await?;
        if answer.ends_with("OK") { Ok(line) } else { Err(wrong(format!("AUTH: {answer}"))) }
    }

    async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.tried("connect")?;
        stream.set_nodelay(true).tried("set TCP_NODELAY")?;
        let (read, write) = stream.into_split();
        // Small: there are ten thousand of them.
        Ok(Self { read: BufReader::with_capacity(512, read), write, answer: String::new() })
    }

    async fn read_line(&mut self) -> Result<&str> {
        self.answer.clear();
        self.read.read_line(&mut self.answer).await.tried("read an answer")?;
        Ok(self.answer.trim_end())
    }

    /// Sends one line and waits for its one answer.
    pub(crate) async fn ask(&mut self, text: &str) -> Result<&str> {
        self.write.write_all(text.as_bytes()).await.tried("write a line")?;
        self.read_line().await
    }

    /// One line whose answer must be `<request id> OK`.
    pub(crate) async fn set(&mut self, id: &str, nanos: i64) -> Result {
        let answer = self.ask(&format!("r SET {id} {nanos}\n")).await?;
        if answer == "r OK" { Ok(()) } else { Err(wrong(format!("SET: {answer}"))) }
    }

    /// A QUERY; answers how many jobs it listed.
    pub(crate) async fn query(&mut self, prefix: &str) -> Result<usize> {
        let text = format!("r QUERY {prefix}\n");
        self.write.write_all(text.as_bytes()).await.tried("write a line")?;
        let mut jobs = 0;
        loop {
            match self.read_line().await? {
                "r OK" => return Ok(jobs),
                line if line.starts_with("r ERROR") || line.is_empty() => {
                    return Err(wrong(format!("QUERY: {line}")));
                }
                _ => jobs += 1,
            }
        }
    }

    /// Sets jobs without waiting for each answer; all answers must be OK.
    pub(crate) async fn pipeline(
        self,
        jobs: impl Iterator<Item = (String, i64)> + Send + 'static,
    ) -> Result<Self> {
        let Self { mut read, mut write, answer } = self;
        let room = std::sync::Arc::new(tokio::sync::Semaphore::new(UNDER_WAY));
        let (count, mut counted) = tokio::sync::mpsc::unbounded_channel::<usize>();
        let given = std::sync::Arc::clone(&room);
        let writer = tokio::spawn(async move {
            let mut jobs = jobs.peekable();
            while jobs.peek().is_some() {
                let mut text = String::new();
                let mut lines = 0;
                for (id, nanos) in jobs.by_ref().take(CHUNK) {
                    // Writing to a string cannot fail.
                    let _ = writeln!(text, "r SET {id} {nanos}");
                    lines += 1;
                }
                let permits = u32::try_from(lines).unwrap_or(u32::MAX);
                if let Ok(permit) = given.acquire_many(permits).await {
                    permit.forget();
                }
                let _ = count.send(lines);
                write.write_all(text.as_bytes()).await.tried("write lines")?;
            }
            drop(count);
            Ok::<_, crate::error::Error>(write)
        });
        let mut buffer = vec![0; 64 << 10];
        let mut open: usize = 0;
        let mut rest: Vec<u8> = Vec::new();
        loop {
            if open == 0 {
                match counted.recv().await {
                    Some(lines) => open += lines,
                    None => break,
                }
            }
            let bytes = read.get_mut().read(&mut buffer).await.tried("read answers")?;
            if bytes == 0 {
                return Err(wrong("the server closed the connection"));
            }
            rest.extend_from_slice(buffer.get(..bytes).unwrap_or_default());
            let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let mut answers = 0;
            for answer in
                rest.get(..whole).unwrap_or_default().split_inclusive(|byte| *byte == b'\n')
            {
                if answer != b"r OK\n" {
                    return Err(wrong(format!("SET: {}", String::from_utf8_lossy(answer))));
                }
                answers += 1;
            }
            rest.drain(..whole);
            while answers > open {
                match counted.recv().await {
                    Some(lines) => open += lines,
                    None => return Err(wrong("more answers than lines")),
                }
            }
            open -= answers;
            room.add_permits(answers);
        }
        let write = writer.await.map_err(|error| wrong(format!("the writer broke: {error}")))??;
        Ok(Self { read, write, answer })
    }
}
