//! Every RPC and route as every kind of caller. The rows come from the
//! descriptors, so that a new RPC appears by itself; what each caller may do
//! follows from `permissions.txt`, which is written by hand (SE-22).

mod audited;
pub mod call;
mod callers;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use bailiwick::{
    access::{Rule, Table, table::Mode},
    pb,
};
use prost_reflect::DescriptorPool;

use self::{
    call::{Answer, Surface},
    callers::{Caller, Kind},
    world::World,
};

const PERMISSIONS: &str = include_str!("../permissions.txt");

/// A line of `permissions.txt`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    permission: Option<String>,
    mode: String,
}

fn written() -> BTreeMap<String, Row> {
    let lines = PERMISSIONS.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [rpc, permission, mode] = words[..] else { panic!("{line}") };
            let permission = (permission != "-").then(|| permission.to_owned());
            (rpc.to_owned(), Row { permission, mode: mode.to_owned() })
        })
        .collect()
}

fn described() -> BTreeMap<String, Row> {
    let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
    let table = Table::from_pool(&pool, &BTreeSet::new()).unwrap();
    let row = |rule: &Rule| match rule {
        Rule::Permission { permission, mode } => Row {
            permission: Some(permission.to_string()),
            mode: match mode {
                Mode::Namespace(field) => format!("namespace_field:{field}"),
                Mode::Object(field) => format!("object:{field}"),
                Mode::Filtered => "filtered".to_owned(),
                Mode::Global(_) => "global".to_owned(),
            },
        },
        Rule::Public(_) => Row { permission: None, mode: "public".to_owned() },
        Rule::Authenticated(_) => Row { permission: None, mode: "authenticated".to_owned() },
        Rule::Root => Row { permission: None, mode: "root".to_owned() },
        Rule::Node => Row { permission: None, mode: "node".to_owned() },
    };
    table.iter().map(|rule| (rule.full_name.to_string(), row(&rule.rule))).collect()
}

#[test]
fn se_22_the_rules_are_what_was_written_down_by_hand() {
    assert_eq!(described(), written());
}

/// What a caller must see of a call.
fn expected(rpc: &str, row: &Row, caller: &Caller) -> Answer {
    if row.mode == "public" {
        return Answer::Ok;
    }
    if matches!(caller.kind, Kind::Stranger) {
        return Answer::Unauthenticated;
    }
    if row.mode == "root" {
        let roots = ["root key", "role:superuser by a key"];
        let root = roots.contains(&caller.name.as_str());
        return if root { Answer::Ok } else { Answer::Denied };
    }
    // Who holds what somebody else asks for decides about it: `tasks:read`.
    let decides = ["ApproveElevation", "DenyElevation", "RevokeElevation"];
    if decides.iter().any(|name| rpc.ends_with(name)) {
        let holds = |permission| caller.holds(permission);
        let there = matches!(caller.kind, Kind::Known);
        return if there && holds("tasks:read") {
            Answer::Ok
        } else if there && holds("audit:read") {
            Answer::Denied
        } else {
            Answer::NotFound
        };
    }
    // Its use case asks for the permission, not its rule.
    let audit = || rpc.ends_with("/WhoCan").then(|| "audit:read".to_owned());
    let Some(permission) = &row.permission.clone().or_else(audit) else { return Answer::Ok };
    if !caller.holds(permission) {
        return Answer::Denied;
    }
    match (&caller.kind, row.mode.as_str()) {
        (Kind::Elsewhere, "global") => Answer::Denied,
        // What is no list is a count of nothing.
        (Kind::Elsewhere, "filtered") if call::list_of(rpc).is_none() => Answer::Ok,
        (Kind::Elsewhere, "filtered") => Answer::Empty,
        (Kind::Elsewhere, _) => Answer::NotFound,
        _ => Answer::Ok,
    }
}

/// The whole matrix, SE-10 and SE-22 with it: TK-10 to TK-30 and TK-64 to
/// TK-70 are its cells.
#[tokio::test(flavor = "multi_thread")]
async fn tk_10_to_30_and_tk_64_every_caller_at_every_rpc_and_route() {
    let world = Arc::new(World::build().await);
    let rows = written();
    let callers = callers::all();
    let targets = World::targets();
    // Each RPC of the descriptors is called, by gRPC and by each route.
    let called: BTreeSet<&str> = targets.iter().map(|target| target.rpc.as_str()).collect();
    let missing: Vec<&String> = rows
        .keys()
        .filter(|rpc| rpc.starts_with("bailiwick.") && !called.contains(rpc.as_str()))
        .collect();
    assert!(missing.is_empty(), "no call for {missing:?}");

    let mut outcome: BTreeMap<String, BTreeMap<Answer, Vec<String>>> = BTreeMap::new();
    let mut wrong = Vec::new();
    let before = world.state().await;
    // Denied calls first, all of them: nothing may have changed after them.
    for allowed in [false, true] {
        for target in &targets {
            let row = &rows[&target.rpc];
            world.heartbeat().await;
            for caller in &callers {
                let wanted = expected(&target.rpc, row, caller);
                if (wanted == Answer::Ok) != allowed {
                    continue;
                }
                let answer = world.call(target, caller, allowed).await;
                let name = format!("{} {}", target.rpc, target.surface);
                if answer.kind != wanted {
                    let kind = answer.kind;
                    wrong.push(format!(
                        "{name} as {}: {kind:?} for {wanted:?}: {}",
                        caller.name, answer.text
                    ));
                }
                let cell = outcome.entry(name).or_default().entry(answer.kind).or_default();
                cell.push(caller.name.clone());
            }
        }
        if !allowed {
            assert_eq!(world.state().await, before, "a denied call changed something");
        }
    }
    assert!(wrong.is_empty(), "{} wrong cells:\n{}", wrong.len(), wrong.join("\n"));
    insta::assert_snapshot!("auth_matrix", table(&outcome, callers.len()));
}

/// Each built-in role, by a token and by a key, opens exactly what it is
/// documented to.
#[tokio::test(flavor = "multi_thread")]
async fn tk_52_every_role_at_every_rpc_and_route() {
    let (callers, keys) = callers::roles();
    let world = World::with(keys).await;
    let rows = written();
    let mut wrong = Vec::new();
    let mut opened: BTreeMap<&str, usize> = BTreeMap::new();
    let targets = World::targets();
    for allowed in [false, true] {
        for target in &targets {
            world.heartbeat().await;
            for caller in &callers {
                let wanted = expected(&target.rpc, &rows[&target.rpc], caller);
                if (wanted == Answer::Ok) != allowed {
                    continue;
                }
                let answer = world.call(target, caller, allowed).await;
                if answer.kind != wanted {
                    let (kind, text) = (answer.kind, answer.text);
                    let (rpc, surface, caller) = (&target.rpc, &target.surface, &caller.name);
                    wrong.push(format!(
                        "{rpc} {surface} as {caller}: {kind:?} for {wanted:?}: {text}"
                    ));
                }
                if allowed {
                    *opened.entry(&caller.name).or_default() += 1;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong cells:\n{}", wrong.len(), wrong.join("\n"));
    // Every role opens something, and none but the superuser by a key, which is
    // root, everything.
    for caller in &callers {
        let all = caller.name == "role:superuser by a key";
        assert_eq!(opened[caller.name.as_str()] == targets.len(), all, "{}", caller.name);
    }
}

/// One line for each RPC and surface: who gets which answer. The largest
/// group of a line is not spelled out.
fn table(outcome: &BTreeMap<String, BTreeMap<Answer, Vec<String>>>, callers: usize) -> String {
    let mut text = format!("{callers} callers\n");
    for (name, answers) in outcome {
        let _ = writeln!(text, "\n{name}");
        for (answer, callers) in answers {
            let shown = if *answer == Answer::Denied {
                format!("{} others", callers.len())
            } else {
                callers.join(", ")
            };
            let _ = writeln!(text, "  {answer:<16} {shown}");
        }
    }
    text
}

/// Hidden and absent objects answer byte for byte alike, apart from the
/// request's id and the id that was asked for.
#[tokio::test]
async fn se_10_hidden_and_absent_are_told_by_nothing() {
    let world = World::build().await;
    let elsewhere = callers::elsewhere();
    for target in World::targets() {
        let Some(absent) = world.absent(&target) else { continue };
        let hidden = world.raw(&target, &elsewhere).await;
        let absent = world.raw(&absent, &elsewhere).await;
        assert_eq!(hidden, absent, "{} {}", target.rpc, target.surface);
    }
}

#[test]
fn the_matrix_has_a_surface_for_each_binding() {
    let surfaces: Vec<Surface> = call::surfaces("bailiwick.v1.TaskService/GetTask");
    assert_eq!(surfaces.len(), 3, "gRPC and two routes: {surfaces:?}");
}
