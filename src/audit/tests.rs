//! Exports of a real store, and every way to touch one.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{
    ExportRequest, Filter, Ledger, Sealer,
    chain::{self, BEGINNING, CHECKPOINT_TAG, CLOSING_TAG, Checkpoint, Closing, Hash, hex},
    key::AuditKey,
    line::{Line, write_closing, write_record},
    verify::{Error, Expected, Fault, Summary, verify},
};
use crate::{
    authz::{self, Claim},
    domain::{
        Clock, PermissionSet, Principal, RequestId, Scope, Timestamp,
        audit::{Origin, Outcome},
        permission::right::AuditRead,
        principal::Grant,
    },
    engine::Floor,
    storage::{
        AuditDraft, AuditStore as _, LeaseTerms, Store,
        sqlite::{Settings, Sqlite},
    },
};

const CHAINS: [&str; 4] = ["shop", "shop.eu", "*", "deploy"];
const MINUTE: i64 = 60_000_000;
const BEGUN: i64 = 1_000_000_000_000_000;

#[derive(Debug)]
struct Hands(AtomicI64);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

pub(super) struct House {
    pub(super) store: Arc<Sqlite>,
    ledger: Arc<Ledger>,
    clock: Arc<Hands>,
    pub(super) folder: TempDir,
}

fn key(seed: u8) -> AuditKey {
    AuditKey::from_seed(&[seed; 32]).unwrap()
}

/// Who reads with this scope.
fn reader(scope: &[&str]) -> Claim<AuditRead> {
    let scope = Scope::parse(scope).unwrap();
    let grants = vec![Grant { permissions: PermissionSet::star(), scope }];
    let principal = Arc::new(Principal { grants, ..Principal::auth_off() });
    let origin = Origin::new(principal, "test".into(), RequestId::from_random([1; 16]));
    authz::claim(&Arc::new(origin)).unwrap()
}

impl House {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Hands(AtomicI64::new(BEGUN)));
        let terms = LeaseTerms::lasting(std::time::Duration::from_mins(1));
        let settings = Settings::new(folder.path().join("bailiwick.db")).with_terms(terms);
        let store =
            Sqlite::open(settings, Floor::new(), Arc::<Hands>::clone(&clock)).await.unwrap();
        let shared = || -> Arc<dyn Store> { Arc::<Sqlite>::clone(&store) };
        let sealer = Sealer::open(shared(), Arc::new(key(1)), Arc::<Hands>::clone(&clock)).await;
        let ledger = Ledger::new(shared(), sealer.unwrap(), Arc::<Hands>::clone(&clock));
        Self { store, ledger: Arc::new(ledger), clock, folder }
    }

    /// Keeps records, one a minute, chain by chain in turn.
    pub(super) async fn keep(&self, number: usize) {
        for place in 0..number {
            let at = self.clock.0.fetch_add(MINUTE, Ordering::SeqCst);
            let at = crate::domain::audit::rfc3339_text(Timestamp::from_micros(at));
            let chain = CHAINS[place % CHAINS.len()];
            let outcome = ["allowed", "denied", "failed"][place % 3];
            let body = format!(
                "{{\"at\":\"{at}\",\"rpc\":\"bailiwick.v1.TaskService/CreateTask\",\
                 \"outcome\":\"{outcome}\",\"actor\":{{\"source\":\"config\",\
                 \"subject\":\"alice\",\"method\":\"api_key\",\"credential\":\"key-{}\",\
                 \"fingerprint\":\"f00d\"}},\"permission\":\"tasks:create\",\"object\":\"o-{place}\"}}",
                place % 2
            );
            let draft = AuditDraft { chain: chain.into(), otherwise: None, body: body.into() };
            self.store.append_audit(vec![draft]).await.unwrap();
        }
    }

    pub(super) async fn seal(&self) {
        self.ledger.sealed().await.unwrap();
    }

    /// Sixty records under several checkpoints.
    pub(super) async fn filled() -> Self {
        let house = Self::new().await;
        for records in [7, 13, 1, 20, 19] {
            house.keep(records).await;
            house.seal().await;
        }
        house
    }

    async fn export(&self, scope: &[&str], request: &ExportRequest) -> String {
        let lines = Arc::clone(&self.ledger).export(&reader(scope), request).await.unwrap();
        lines.try_collect::<Vec<_>>().await.unwrap().concat()
    }

    pub(super) async fn all(&self) -> String {
        self.export(&["*"], &ExportRequest::default()).await
    }
}

fn check(text: &str) -> Result<Summary, Fault> {
    check_with(text, None)
}

fn check_with(text: &str, expected: Option<&str>) -> Result<Summary, Fault> {
    let expected = expected.map(|text| text.parse::<Expected>().unwrap());
    verify(text.as_bytes(), key(1).public(), expected.as_ref()).map_err(|error| match error {
        Error::Fault(fault) => fault,
        Error::Io(error) => unreachable!("{error}"),
    })
}

fn lines(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

#[tokio::test]
async fn se_44_an_export_holds_and_says_what_is_in_it() {
    let house = House::filled().await;
    let text = house.all().await;
    let summary = check(&text).unwrap();
    assert_eq!((summary.records, summary.checkpoints, summary.chains), (60, 5, 4));
    assert_eq!((summary.closing.first, summary.closing.last), (1, 65));
    assert_eq!(summary.uncovered, 0);
    assert_eq!(lines(&text).len(), 66);
    // Nothing new: the same lines, and no checkpoint more.
    assert_eq!(house.all().await, text);
    // The export seals first.
    house.keep(3).await;
    let more = house.all().await;
    let summary = check(&more).unwrap();
    assert_eq!((summary.records, summary.checkpoints), (63, 6));
    assert!(more.starts_with(&lines(&text)[..65].concat()));
    let empty = House::new().await.all().await;
    assert_eq!(check(&empty).unwrap().records, 0);
}

#[tokio::test]
async fn se_44_a_part_of_the_audit_holds_too() {
    let house = House::filled().await;
    let since = Some(Timestamp::from_micros(BEGUN + 22 * MINUTE));
    let until = Some(Timestamp::from_micros(BEGUN + 30 * MINUTE));
    let late = house.export(&["*"], &ExportRequest { since, ..ExportRequest::default() }).await;
    let summary = check(&late).unwrap();
    assert_eq!((summary.closing.first, summary.closing.last), (24, 65));
    let early = house.export(&["*"], &ExportRequest { until, ..ExportRequest::default() }).await;
    let summary = check(&early).unwrap();
    assert_eq!((summary.closing.first, summary.closing.last), (1, 45));
    let never = Some(Timestamp::from_micros(BEGUN + 900 * MINUTE));
    let none = house.export(&["*"], &ExportRequest { since: never, ..Default::default() }).await;
    assert_eq!(check(&none).unwrap().records, 0);

    // Others' records leak nothing but leaves.
    let shop = ExportRequest { namespaces: vec!["shop".to_owned()], ..Default::default() };
    for text in [
        house.export(&["*"], &shop).await,
        house.export(&["shop"], &ExportRequest::default()).await,
        house.export(&["shop", "else"], &shop).await,
    ] {
        let summary = check(&text).unwrap();
        assert_eq!((summary.chains, summary.checkpoints), (2, 5));
        assert!(!text.contains("deploy") && !text.contains("\"*\""), "{text}");
    }
    let both = ExportRequest { since, ..shop };
    assert_eq!(check(&house.export(&["shop"], &both).await).unwrap().closing.first, 24);
    let outside = ExportRequest { namespaces: vec!["deploy".to_owned()], ..Default::default() };
    let refused = Arc::clone(&house.ledger).export(&reader(&["shop"]), &outside).await;
    assert!(matches!(refused.err(), Some(super::Error::OutsideScope(name)) if name == "deploy"));
}

#[tokio::test]
async fn se_44_what_comes_while_a_checkpoint_is_made_is_held_by_the_next() {
    let house = House::new().await;
    house.keep(5).await;
    let state = house.store.audit_state().await.unwrap();
    let rows = house.store.audit_from(1, 4).await.unwrap();
    let seal = super::seal::seal(&state, &rows, &key(1), house.clock.now()).unwrap().unwrap();
    assert!(house.store.seal_audit(seal).await.unwrap());
    house.keep(3).await;
    let summary = check(&house.all().await).unwrap();
    assert_eq!((summary.records, summary.checkpoints, summary.uncovered), (8, 2, 0));
    // And at the end, where no next one is: the export's signature.
    let state = house.store.audit_state().await.unwrap();
    house.keep(2).await;
    let rows = house.store.audit_from(state.sealed + 1, 2).await.unwrap();
    let seal = super::seal::seal(&state, &rows, &key(1), house.clock.now()).unwrap().unwrap();
    let last = *seal.covers.end();
    assert!(house.store.seal_audit(seal).await.unwrap());
    let until = Some(Timestamp::from_micros(BEGUN));
    let request = ExportRequest { until, ..ExportRequest::default() };
    assert!(check(&house.export(&["*"], &request).await).unwrap().closing.last <= last + 2);
}

/// Every position is touched in every way; each is found.
fn all_mutations(text: &str) -> Vec<(String, String)> {
    let whole = lines(text);
    let mut found = Vec::new();
    let mut add = |what: String, lines: &[&str]| found.push((what, lines.concat()));
    for place in 0..whole.len() {
        let mut removed = whole.clone();
        let line = removed.remove(place);
        add(format!("{place} removed"), &removed);
        let mut twice = whole.clone();
        twice.insert(place, line);
        add(format!("{place} twice"), &twice);
        let mut moved = removed.clone();
        moved.insert(removed.len() / 3, line);
        if moved != whole {
            add(format!("{place} moved"), &moved);
        }
        if place + 1 < whole.len() {
            let mut swapped = whole.clone();
            swapped.swap(place, place + 1);
            add(format!("{place} swapped"), &swapped);
        }
        add(format!("cut before {place}"), &whole[..place]);
        let half = &line[..line.len() / 2];
        add(format!("cut in {place}"), &[&whole[..place], &[half]].concat());
        add(format!("cut at the end of {place}"), &[&whole[..place], &[line.trim_end()]].concat());
    }
    found
}

#[tokio::test]
async fn se_44_a_line_that_is_removed_repeated_moved_or_cut_is_found() {
    let house = House::filled().await;
    let shop = ExportRequest { namespaces: vec!["shop".to_owned()], ..Default::default() };
    for text in [house.all().await, house.export(&["*"], &shop).await] {
        check(&text).unwrap();
        let all = all_mutations(&text);
        assert!(all.len() > 6 * lines(&text).len(), "{}", all.len());
        for (what, changed) in all {
            assert!(check(&changed).is_err(), "not found: {what}");
        }
        assert!(check(&format!("{text}{text}")).is_err());
        assert!(check(&format!("{text}\n")).is_err());
        assert!(check(&format!("\n{text}")).is_err());
        assert!(check("").is_err());
    }
}

#[tokio::test]
async fn se_44_every_byte_counts() {
    let house = House::filled().await;
    let text = house.all().await;
    let whole = lines(&text);
    let checkpoint = whole.iter().position(|line| line.contains("\"checkpoint\"")).unwrap();
    for place in [0, 1, checkpoint, whole.len() - 1] {
        let before = whole[..place].concat();
        let after = whole[place + 1..].concat();
        let line = whole[place].as_bytes();
        for byte in 0..line.len() {
            for flip in [0x01, 0x20, 0x80] {
                let mut changed = line.to_vec();
                changed[byte] ^= flip;
                let changed = [before.as_bytes(), &changed, after.as_bytes()].concat();
                let found = verify(&*changed, key(1).public(), None);
                assert!(found.is_err(), "line {place}, byte {byte} flipped by {flip}");
            }
        }
    }
}

/// Where the first record of the chain `shop.eu` behind the first checkpoint
/// stands.
fn middle(whole: &[&str]) -> usize {
    let mut later = whole.iter().enumerate().skip(10);
    later.find(|(_, line)| line.contains("shop.eu")).unwrap().0
}

#[tokio::test]
async fn se_44_the_first_bad_line_is_named() {
    let house = House::filled().await;
    let text = house.all().await;
    let whole = lines(&text);
    let place = middle(&whole);
    let line = u64::try_from(place).unwrap() + 1;
    let seq = i64::try_from(line).unwrap();
    let said = |changed: &[&str]| check(&changed.concat()).unwrap_err();
    let with = |from: &str, to: &str| {
        let changed = whole[place].replacen(from, to, 1);
        assert_ne!(changed, whole[place]);
        let mut all = whole.clone();
        all[place] = &changed;
        said(&all)
    };
    for (from, to, what) in [
        ("\"alice\"", "\"malice\"", "its hash is another"),
        ("\"object\":\"o-", "\"object\":\"x-", "its hash is another"),
        ("\"number\":", "\"number\":1", "number"),
        ("\"prev\":\"", "\"prev\":\"0", "64 lower-case hex digits"),
        ("\"seq\":", "\"seq\":9", "follows record"),
        ("\"chain\":\"shop.eu\"", "\"chain\":\"shop\"", "chain `shop`"),
        ("\"chain\":\"shop.eu\"", "\"chain\":\"new\"", "are missing"),
        ("{\"seq\"", "{\"more\":1,\"seq\"", "cannot be read"),
        ("\"record\":{", "\"record\":{{", "cannot be read"),
    ] {
        let fault = with(from, to);
        assert_eq!(fault.line, line, "{from}: {fault}");
        assert!(fault.what.contains(what), "{from}: {fault}");
    }
    // What is missing shows at what follows.
    let mut removed = whole.clone();
    removed.remove(place);
    let fault = said(&removed);
    assert_eq!((fault.line, fault.seq), (line, Some(seq + 1)));
    assert!(fault.what.contains("missing"), "{fault}");
    let mut swapped = whole.clone();
    swapped.swap(place, place + 1);
    assert_eq!(said(&swapped).line, line);
    let fault = said(&whole[1..]);
    assert_eq!((fault.line, fault.seq), (1, Some(2)));
    let fault = said(&whole[..whole.len() - 1]);
    assert_eq!(fault.line, u64::try_from(whole.len()).unwrap());
    assert!(fault.what.contains("closing record"), "{fault}");
}

/// The lines with everything that needs no key made right again, and the
/// closing record too, where there is a key for it.
fn rehashed(whole: &[String], signer: Option<&AuditKey>) -> String {
    let mut heads = std::collections::HashMap::<String, (i64, Hash)>::new();
    let mut text = String::new();
    let (mut number, mut prev) = (0, BEGINNING);
    for line in whole {
        match Line::read(line.trim_end(), &mut String::new()).unwrap() {
            Line::Record(record) => {
                let (number, prev) = heads.get(&*record.chain).copied().unwrap_or((0, BEGINNING));
                let (seq, body) = (record.seq, record.record.get());
                let hash = chain::record(seq, &record.chain, number + 1, &prev, body);
                let place = (seq, &*record.chain, number + 1);
                write_record(&mut text, place, &hex(&prev), &hex(&hash), body);
                heads.insert(record.chain.into_owned(), (number + 1, hash));
            }
            Line::Checkpoint(line, said) => {
                let Some(signer) = signer else {
                    writeln!(
                        text,
                        "{{\"seq\":{},\"checkpoint\":{},\"signature\":\"{}\"}}",
                        line.seq, line.checkpoint, line.signature
                    )
                    .unwrap();
                    continue;
                };
                number += 1;
                // Leaves as they must be now.
                let mut leaves = Vec::new();
                for (chain, (number, hash)) in &heads {
                    leaves.push(hex(&chain::leaf(chain, *number, hash)));
                }
                let key = signer.public().id().to_owned();
                let said = Checkpoint { number, prev: hex(&prev), leaves, key, ..said };
                let json = serde_json::to_string(&said).unwrap();
                prev = chain::checkpoint(&json);
                let signature = signer.sign(CHECKPOINT_TAG, &json);
                writeln!(
                    text,
                    "{{\"seq\":{},\"checkpoint\":{json},\"signature\":\"{signature}\"}}",
                    line.seq
                )
                .unwrap();
            }
            Line::Closing(_, said) => {
                let sha256 = hex(&Hash::from(Sha256::digest(&text)));
                let lines = u64::try_from(text.lines().count()).unwrap();
                let said = Closing { lines, sha256, ..said };
                let signer = signer.map_or_else(|| key(9), key_of);
                let said = Closing { key: signer.public().id().to_owned(), ..said };
                let json = serde_json::to_string(&said).unwrap();
                write_closing(&mut text, &json, &signer.sign(CLOSING_TAG, &json));
            }
        }
    }
    text
}

fn key_of(signer: &AuditKey) -> AuditKey {
    let seeds = 0..=9;
    seeds.map(key).find(|key| key.public() == signer.public()).unwrap()
}

#[tokio::test]
async fn se_44_who_has_no_key_cannot_make_it_right_again() {
    let house = House::filled().await;
    let text = house.all().await;
    let whole: Vec<String> = lines(&text).into_iter().map(str::to_owned).collect();
    let records = whole.len() - 1;
    for place in 0..records {
        let mut changed = whole.clone();
        changed[place] = changed[place].replacen("alice", "mallory", 1);
        if changed[place] == whole[place] {
            continue;
        }
        // All hashes right: the checkpoint over it knows better.
        let fault = check(&rehashed(&changed, None)).unwrap_err();
        assert!(fault.what.contains("does not know record"), "{place}: {fault}");
        // All signed anew by a key that is not the server's.
        let fault = check(&rehashed(&changed, Some(&key(2)))).unwrap_err();
        assert!(fault.what.contains("is signed by the key"), "{place}: {fault}");
        // The same that says it is.
        let id = [key(2), key(1)].map(|key| key.public().id().to_owned());
        let forged = rehashed(&changed, Some(&key(2))).replace(&id[0], &id[1]);
        let fault = check(&forged).unwrap_err();
        assert!(fault.what.contains("is not what was signed"), "{place}: {fault}");
    }
    // A record more at the end of a chain, with its right hash.
    let place = middle(&lines(&text));
    let Some(Line::Record(after)) = Line::read(whole[place].trim_end(), &mut String::new()) else {
        unreachable!("a record")
    };
    let mut forged = String::new();
    let hash = after.hash.to_owned();
    let own = chain::record(
        after.seq + 1,
        &after.chain,
        after.number + 1,
        &super::line::unhex(&hash).unwrap(),
        "{}",
    );
    let at = (after.seq + 1, &*after.chain, after.number + 1);
    write_record(&mut forged, at, &hash, &hex(&own), "{}");
    let mut inserted = whole.clone();
    inserted.insert(place + 1, forged);
    assert!(check(&inserted.concat()).is_err());
    // The key itself could: that is what `--expect` is for.
    let edited: Vec<String> = whole.iter().map(|line| line.replace("alice", "mallory")).collect();
    let last = check(&text).unwrap().closing.checkpoint;
    assert!(check_with(&text, Some(&last)).is_ok());
    let fault = check_with(&rehashed(&edited, Some(&key(1))), Some(&last)).unwrap_err();
    assert!(!fault.what.is_empty());
}

#[tokio::test]
async fn se_44_a_noted_checkpoint_must_be_there() {
    let house = House::filled().await;
    let text = house.all().await;
    let hashes: Vec<String> = lines(&text)
        .iter()
        .filter_map(|line| {
            let mut scratch = String::new();
            let line = Line::read(line.trim_end(), &mut scratch);
            let Some(Line::Checkpoint(line, said)) = line else { return None };
            let hash = chain::checkpoint(line.checkpoint.get());
            Some(format!("{}:{}", said.number, hex(&hash)))
        })
        .collect();
    assert_eq!(hashes.len(), 5);
    for noted in &hashes {
        check_with(&text, Some(noted)).unwrap();
        let (number, hash) = noted.split_once(':').unwrap();
        let other = format!("{number}:{}", hash.chars().rev().collect::<String>());
        let fault = check_with(&text, Some(&other)).unwrap_err();
        assert!(fault.what.contains("not the expected one"), "{fault}");
    }
    // One that is not reached: the end was cut before the export was made.
    let later = format!("6:{}", "0".repeat(64));
    let fault = check_with(&text, Some(&later)).unwrap_err();
    assert!(fault.what.contains("its end is missing"), "{fault}");
    // One before the first is known by the next, one further back by none.
    let since = Some(Timestamp::from_micros(BEGUN + 22 * MINUTE));
    let late = house.export(&["*"], &ExportRequest { since, ..Default::default() }).await;
    let first = lines(&late).into_iter().find(|line| line.contains("\"checkpoint\":{\"number\":4"));
    assert!(first.is_some(), "{late}");
    check_with(&late, Some(&hashes[2])).unwrap();
    let fault = check_with(&late, Some(&hashes[0])).unwrap_err();
    assert!(fault.what.contains("cannot be compared"), "{fault}");
    for wrong in ["", "1", "1:", ":00", "+1:00", &hashes[0].to_uppercase(), &hashes[0][1..]] {
        assert!(wrong.parse::<Expected>().is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn se_44_who_changes_the_store_is_found_out_by_the_export() {
    let house = House::filled().await;
    let database = rusqlite::Connection::open(house.folder.path().join("bailiwick.db")).unwrap();
    let place = 21;
    database
        .execute(
            "UPDATE audit SET body = replace(body, 'alice', 'mallory') WHERE seq = ?1",
            [place],
        )
        .unwrap();
    let fault = check(&house.all().await).unwrap_err();
    assert_eq!(fault.seq, Some(place));
    assert!(fault.what.contains("was changed"), "{fault}");
}

#[tokio::test]
async fn search_audit_filters_pages_and_hides() {
    let house = House::filled().await;
    let all = Filter::default();
    let everyone = reader(&["*"]);
    let mut seqs = Vec::new();
    let mut before = None;
    loop {
        let page = house.ledger.search(&everyone, &all, before, 7).await.unwrap();
        seqs.extend(page.records.iter().map(|found| found.seq));
        before = page.before;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(seqs.len(), 60);
    assert!(seqs.is_sorted_by(|a, b| a > b), "{seqs:?}");

    let count = async |claim: &Claim<AuditRead>, filter: Filter| {
        house.ledger.search(claim, &filter, None, 500).await.unwrap().records.len()
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(count(&everyone, Filter { actor: some("alice"), ..all.clone() }).await, 60);
    assert_eq!(count(&everyone, Filter { actor: some("bob"), ..all.clone() }).await, 0);
    for rpc in ["CreateTask", "bailiwick.v1.TaskService/CreateTask"] {
        assert_eq!(count(&everyone, Filter { rpc: some(rpc), ..all.clone() }).await, 60);
    }
    assert_eq!(count(&everyone, Filter { rpc: some("Task"), ..all.clone() }).await, 0);
    assert_eq!(count(&everyone, Filter { credential: some("f00d"), ..all.clone() }).await, 60);
    let own = count(&everyone, Filter { credential: some("key-1"), ..all.clone() }).await;
    assert!((1..60).contains(&own), "{own}");
    let denied = Filter { outcome: Some(Outcome::Denied), ..all.clone() };
    assert!((1..60).contains(&count(&everyone, denied).await));
    assert_eq!(count(&everyone, Filter { object: some("o-19"), ..all.clone() }).await, 1);
    assert_eq!(count(&everyone, Filter { permission: some("tasks:read"), ..all.clone() }).await, 0);
    let shop = count(&everyone, Filter { namespace: some("shop"), ..all.clone() }).await;
    assert!(shop > count(&everyone, Filter { namespace: some("shop.eu"), ..all.clone() }).await);
    assert_eq!(count(&everyone, Filter { namespace: some("sho"), ..all.clone() }).await, 0);
    let (since, until) = (BEGUN + 10 * MINUTE, BEGUN + 15 * MINUTE);
    let (since, until) = (Timestamp::from_micros(since), Timestamp::from_micros(until));
    let span = Filter { since: Some(since), until: Some(until), ..all.clone() };
    assert_eq!(count(&everyone, span).await, 5);

    // A tenant sees its own chains.
    let tenant = reader(&["shop"]);
    let page = house.ledger.search(&tenant, &all, None, 500).await.unwrap();
    assert_eq!(page.records.len(), shop);
    assert!(page.records.iter().all(|found| found.chain.starts_with("shop")));
    assert_eq!(count(&tenant, Filter { namespace: some("deploy"), ..all.clone() }).await, 0);
}

#[tokio::test]
async fn stream_audit_sends_what_comes_and_hides() {
    let house = House::filled().await;
    let tenant = || reader(&["deploy"]);
    let mut old = Box::pin(
        Arc::clone(&house.ledger).follow(tenant(), Filter::default(), Some(0)).await.unwrap(),
    );
    let mut new = Box::pin(
        Arc::clone(&house.ledger).follow(tenant(), Filter::default(), None).await.unwrap(),
    );
    assert_eq!(&*old.try_next().await.unwrap().unwrap().chain, "deploy");
    house.keep(4).await;
    let found = new.try_next().await.unwrap().unwrap();
    assert_eq!((found.seq, &*found.chain), (69, "deploy"));
}

/// What somebody does who can write the database and has no key: the end of a
/// chain goes to another one, and the ends of both are set to fit.
async fn tail_moved(house: &House, to: &str) {
    let state = house.store.audit_state().await.unwrap();
    let rows = house.store.audit_from(1, 1000).await.unwrap();
    let tail: Vec<i64> = rows
        .iter()
        .filter(|row| row.chain.as_deref() == Some("shop"))
        .map(|row| row.seq)
        .rev()
        .take(2)
        .collect();
    let seal = house.store.audit_seal(tail[1]).await.unwrap().unwrap();
    assert!(seal.covers.contains(&tail[0]), "both lie under one checkpoint: {tail:?}");
    let of_shop = |seq: i64| {
        rows.iter().filter(move |row| row.chain.as_deref() == Some("shop") && row.seq < seq)
    };
    let before = of_shop(tail[1]).next_back().unwrap().seq;
    let hash = |seal: &crate::storage::AuditSeal, seq: i64| {
        let place = usize::try_from(seq - seal.covers.start()).unwrap() * 32;
        Hash::try_from(&seal.links[place..place + 32]).unwrap()
    };
    let stood = hash(&house.store.audit_seal(before).await.unwrap().unwrap(), before);
    let ends = hash(&seal, tail[0]);
    let conn = rusqlite::Connection::open(house.folder.path().join("bailiwick.db")).unwrap();
    for seq in &tail {
        conn.execute("UPDATE audit SET chain = ?2 WHERE seq = ?1", (seq, to)).unwrap();
    }
    let (number, _) = state.heads["shop"];
    let set = "INSERT INTO audit_head (chain, number, hash) VALUES (?1, ?2, ?3) ON CONFLICT (chain) \
               DO UPDATE SET number = excluded.number, hash = excluded.hash";
    conn.execute(set, ("shop", number - 2, stood)).unwrap();
    let had = state.heads.get(to).map_or(0, |(number, _)| *number);
    conn.execute(set, (to, had + 2, ends)).unwrap();
}

#[tokio::test]
async fn se_44_the_end_of_a_chain_that_went_elsewhere_is_not_exported_as_whole() {
    for to in ["attic", "deploy"] {
        let house = House::filled().await;
        let noted = house.ledger.last_checkpoint().await.unwrap();
        tail_moved(&house, to).await;
        for namespaces in [vec!["shop".to_owned()], vec!["shop.eu".to_owned()], vec![]] {
            let request = ExportRequest { namespaces, ..Default::default() };
            let lines = Arc::clone(&house.ledger).export(&reader(&["*"]), &request).await.unwrap();
            let ended = lines.try_collect::<Vec<_>>().await;
            let number: i64 = noted.split_once(':').unwrap().0.parse().unwrap();
            assert!(
                matches!(&ended, Err(super::Error::Damaged(super::seal::SealError::Leaves(at))) if *at == number),
                "{ended:?}"
            );
        }
        // What lies before it can still be exported.
        let until = Some(Timestamp::from_micros(BEGUN + 15 * MINUTE));
        let request =
            ExportRequest { until, namespaces: vec!["shop".to_owned()], ..Default::default() };
        assert!(check(&house.export(&["*"], &request).await).unwrap().records > 0);
    }
}

#[tokio::test]
async fn se_44_a_part_of_what_retention_left_is_exported() {
    let house = House::filled().await;
    let keep =
        crate::storage::AuditKept { since: None, bytes: Some(9_000), spared: None, untold: None };
    let gone = house.store.let_audit_go(&keep, Timestamp::from_micros(0)).await.unwrap();
    assert!(gone.rows > 0);
    let shop = ExportRequest { namespaces: vec!["shop".to_owned()], ..Default::default() };
    for text in [house.all().await, house.export(&["*"], &shop).await] {
        assert!(check(&text).unwrap().records > 0);
    }
}
