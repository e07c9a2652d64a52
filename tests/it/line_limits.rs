//! What the line protocol takes and what it does not: other protocols, long
//! lines, silence, crowds, slow readers, the end.

use std::{fmt::Write as _, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    harness::PATIENCE,
    line::{BACKUP, DEPLOY, LATER, Lines, THREE, Wire, folder},
};

#[tokio::test]
async fn se_15_a_browser_at_the_line_port_is_closed_on() {
    let open = Lines::open().await;
    let form = "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n\r\n\
                r1 SET stolen 2099-01-01\r\n";
    let began = Instant::now();
    for foreign in [
        form,
        "GET /r1 HTTP/1.1\r\n",
        "GET / SET x 1\n",
        "PUT /\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "Host: x\r\nr1 SET stolen 2099-01-01\r\n",
        "Content-Type:\r\nr1 SET stolen 2099-01-01\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        assert_eq!(open.told(foreign.as_bytes()).await, "", "{foreign:?}");
    }
    // No line end is waited for.
    assert_eq!(open.told(b"POST /").await, "");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    // Nor behind good lines, which are answered.
    let said = open.told(b"r1 SET good 2099-01-01\nHost: x\nr2 SET stolen 2099-01-01\n").await;
    assert_eq!(said, "r1 OK\n");
    let mut wire = open.wire().await;
    assert_eq!(wire.jobs("QUERY").await, ["good"]);
    let guarded = Lines::guarded().await;
    assert_eq!(guarded.told(form.as_bytes()).await, "");
    let sneaky = format!("AUTH {DEPLOY}\nGET / HTTP/1.1\nr1 SET deploy.stolen {LATER}\n");
    assert_eq!(guarded.told(sneaky.as_bytes()).await, "OK\n");
    assert_eq!(guarded.with(DEPLOY).await.jobs("QUERY").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_line_has_at_most_4096_bytes() {
    let server = Lines::open().await;
    let line = |bytes: usize| {
        let start = "r1 GET ";
        format!("{start}{}\n", "x".repeat(bytes - start.len()))
    };
    let mut wire = server.wire().await;
    wire.send(line(4096).as_bytes()).await;
    assert_eq!(wire.line().await, "r1 ERROR invalid_identifier\n");
    for long in [line(4097), line(4098), line(9000), line(9000).replace('\n', "")] {
        let sent = format!("r0 SET kept {LATER}\n{long}");
        assert_eq!(server.told(sent.as_bytes()).await, "r0 OK\nERROR line_too_long\n");
    }
    let guarded = Lines::guarded().await;
    assert_eq!(guarded.told(&[b'x'; 5000]).await, "ERROR line_too_long\n");
    // Not even a longer end is read for ever.
    assert_eq!(guarded.told(&vec![b'x'; 100_000]).await, "ERROR line_too_long\n");
    // A line that does not end is not done.
    let mut wire = server.wire().await;
    wire.send(b"r1 SET torn 2099-01-01").await;
    drop(wire);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(server.wire().await.ask("r1 GET torn").await, "r1 ERROR\n");
}

#[tokio::test]
async fn connections_are_bounded_in_number_and_silence() {
    let controller = "connections = 4\nconnections_per_address = 2\nidle_seconds = 2\n";
    let server = Lines::start(folder(""), controller).await;
    let mut first = server.wire().await;
    assert_eq!(first.ask("r1 GET x").await, "r1 ERROR\n");
    let mut second = server.wire().await;
    assert_eq!(second.ask("r1 GET x").await, "r1 ERROR\n");
    assert_eq!(server.wire().await.end().await, "");
    // A place is given back, here by silence.
    let began = Instant::now();
    assert_eq!(first.end().await, "");
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    second.end().await;
    drop((first, second));
    let mut again = loop {
        let mut wire = server.wire().await;
        wire.send(b"r1 GET x\n").await;
        let mut said = vec![0; 9];
        let stream = wire.into_inner();
        let (mut stream, read) = read_some(stream, &mut said).await;
        if read > 0 {
            stream.write_all(b"r2 STAT\n").await.unwrap();
            break Wire::new(stream);
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert!(again.line().await.starts_with("r2 uptime_ns "));
}

#[tokio::test]
async fn one_token_never_takes_all_connections() {
    let controller = "auth_file = \"auth.toml\"\nconnections = 8\nconnections_per_token = 2\n";
    let server = Lines::start(folder(THREE), controller).await;
    let first = server.with(DEPLOY).await;
    let mut second = server.with(DEPLOY).await;
    let auth = format!("AUTH {DEPLOY}\n");
    assert_eq!(server.told(auth.as_bytes()).await, "ERROR too_many_connections\n");
    // Nobody else has less, and those that are open go on.
    server.with(BACKUP).await;
    assert_eq!(second.ask(&format!("r1 SET deploy.x {LATER}")).await, "r1 OK\n");
    drop(first);
    let began = Instant::now();
    // The foreign line ends it.
    let again = format!("{auth}r1 GET deploy.y\nGET / HTTP/1.1\n");
    while server.told(again.as_bytes()).await != "OK\nr1 ERROR\n" {
        assert!(began.elapsed() < PATIENCE);
        sleep(Duration::from_millis(50)).await;
    }
}

async fn read_some(mut stream: TcpStream, into: &mut [u8]) -> (TcpStream, usize) {
    let read = timeout(PATIENCE, stream.read(into)).await.unwrap().unwrap_or(0);
    (stream, read)
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_else() {
    let server = Lines::open().await;
    let mut wire = server.wire().await;
    let name = "n".repeat(200);
    for batch in 0..10 {
        let mut all = String::new();
        for number in 0..1_000 {
            let _ = writeln!(all, "s SET {name}{batch}.{number} {LATER}");
        }
        wire.send(all.as_bytes()).await;
        for _ in 0..1_000 {
            assert_eq!(wire.line().await, "s OK\n");
        }
    }
    // Asks for a lot and reads none of it.
    let mut slow = server.wire().await;
    let queries = "r1 QUERY\n".repeat(20);
    slow.send(queries.as_bytes()).await;
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(wire.ask("r1 SET quick 2099-01-01").await, "r1 OK\n");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let mut stuck = server.wire().await;
    stuck.send("r1 QUERY\n".repeat(40).as_bytes()).await;
    // It gets all of it when it reads.
    for _ in 0..20 {
        let mut rows = 0;
        while slow.line().await != "r1 OK\n" {
            rows += 1;
        }
        assert!((10_000..=10_001).contains(&rows), "{rows}");
    }
    // Who reads nothing for 30 s is closed.
    let until = Instant::now() + Duration::from_mins(1);
    let open = || async {
        let stat = server.wire().await.rows("STAT").await;
        stat.iter().find_map(|row| row.strip_prefix("connections ")).map(str::to_owned)
    };
    while open().await.as_deref() != Some("3") {
        assert!(Instant::now() < until, "it is still open: {:?}", open().await);
        sleep(Duration::from_secs(1)).await;
    }
    drop(stuck);
}

#[tokio::test]
async fn the_end_of_the_server_finishes_what_is_in_hand() {
    let mut server = Lines::open().await;
    let mut wire = server.wire().await;
    let idle = server.wire().await;
    let mut all = String::new();
    for number in 0..500 {
        let _ = writeln!(all, "r{number} SET j{number} {LATER}");
    }
    wire.send(all.as_bytes()).await;
    assert_eq!(wire.line().await, "r0 OK\n");
    server.process.terminate();
    let rest = wire.end().await;
    // Whatever was answered is there.
    let answered = rest.lines().count() + 1;
    assert!(rest.is_empty() || rest.ends_with(" OK\n"), "{rest}");
    assert_eq!(server.process.exit().await, Some(0));
    drop(idle);
    let server = Lines::start(server.folder, "").await;
    let there = server.wire().await.jobs("QUERY").await.len();
    assert!(there >= answered, "{there} of {answered}");
}

#[tokio::test]
async fn a_thousand_idle_connections_cost_little() {
    let server = Lines::open().await;
    let resident = || {
        let path = format!("/proc/{}/status", server.process.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let mut wire = server.wire().await;
    assert_eq!(wire.ask("r1 GET x").await, "r1 ERROR\n");
    let before = resident();
    let mut idle = Vec::new();
    for _ in 0..1_000 {
        idle.push(server.wire().await);
    }
    while !wire.rows("STAT").await.contains(&"connections 1001".to_owned()) {
        sleep(Duration::from_millis(50)).await;
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 15 * 1024, "{grown} KiB for a thousand");
    drop(idle);
}
