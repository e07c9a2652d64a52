//! Templates: what is registered, which version is meant, what is refused.

use std::fmt::Write as _;

use super::*;

const STEPS: &str = "  - name: only\n    handler: {callable: work}\n";

fn version(version: &str, steps: &str) -> String {
    yaml("versioned", steps).replace("version: 1.0.0", &format!("version: {version}"))
}

#[tokio::test]
async fn faults_come_with_line_and_column_and_all_at_once() {
    let (_server, api) = house(&[]).await;
    let faulty = "name: broken\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n  - name: a\n    \
                  handler: {callable: work}\n    dependencies: [b, nobody]\n  - name: b\n    \
                  handler: {callable: work}\n    dependencies: [a]\n    colour: red\n";
    let request =
        pb::ValidateTemplateRequest { namespace: NAMESPACE.into(), definition: faulty.into() };
    let checked = api.client.templates().validate_template(request).await.unwrap().into_inner();
    assert!(!checked.valid);
    let at = |text: &str| {
        let found = checked.errors.iter().find(|finding| finding.message.contains(text));
        let finding = found.unwrap_or_else(|| panic!("`{text}` in {:#?}", checked.errors));
        (finding.line, finding.column)
    };
    assert_eq!(at("there is no step `nobody`"), (7, 23));
    assert_eq!(at("`colour` is not a field"), (11, 5));

    let refused = refusal(api.try_register(faulty).await);
    assert_eq!(refused.code, Code::InvalidArgument);
    assert_eq!(refused.reason.as_deref(), Some("TEMPLATE_INVALID"));
    let fault = refused.fields.iter().find(|fault| fault.description.contains("nobody")).unwrap();
    assert!(fault.description.contains("line 7, column 23"), "{fault:?}");
    let cycle = yaml(
        "cycle",
        "  - name: a\n    handler: {callable: work}\n    dependencies: [b]\n  - name: b\n    \
         handler: {callable: work}\n    dependencies: [a]\n",
    );
    let refused = refusal(api.try_register(&cycle).await);
    assert!(refused.to_string().contains("cycle"), "{refused}");
    assert_eq!(reason(api.try_create(api::request("broken")).await), "NOT_FOUND");
}

#[tokio::test]
async fn step_types_but_standard_are_refused_by_name() {
    let (_server, api) = house(&[]).await;
    for kind in ["decision", "deferred_convergence", "batchable", "batch_worker"] {
        let steps = format!("{STEPS}    type: {kind}\n");
        let refused = refusal(api.try_register(&yaml("typed", &steps)).await);
        assert_eq!(refused.reason.as_deref(), Some("TEMPLATE_INVALID"));
        assert!(refused.to_string().contains(&format!("`{kind}`")), "{refused}");
    }
    api.register(&yaml("typed", &format!("{STEPS}    type: standard\n"))).await;
}

#[tokio::test]
async fn hostile_templates_are_refused() {
    let (server, api) = house(&[]).await;
    let large = format!("{}# {}\n", yaml("large", STEPS), "x".repeat(10 << 20));
    assert_eq!(reason(api.try_register(&large).await), "BODY_TOO_LARGE");
    let less = format!("{}# {}\n", yaml("large", STEPS), "x".repeat(2 << 20));
    assert_eq!(reason(api.try_register(&less).await), "TEMPLATE_INVALID");
    let mut bomb = yaml("bomb", STEPS) + "metadata:\n  a0: &a0 [x, x, x, x, x, x, x, x, x]\n";
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
        writeln!(bomb, "  a{level}: &a{level} [{aliases}]").unwrap();
    }
    let started = jiff::Timestamp::now();
    assert_eq!(reason(api.try_register(&bomb).await), "TEMPLATE_INVALID");
    assert!(jiff::Timestamp::now().duration_since(started).as_secs() < 10);
    let deep = format!("{}metadata: {}{}\n", yaml("deep", STEPS), "[".repeat(500), "]".repeat(500));
    assert_eq!(reason(api.try_register(&deep).await), "TEMPLATE_INVALID");
    api.register(&api::one("work")).await;
    assert!(server.logs().iter().all(|line| !line.to_string().contains("panicked")));
}

#[tokio::test]
async fn a_version_never_changes() {
    let (server, api) = house(&[]).await;
    let definition = yaml("kept", STEPS);
    assert!(!api.try_register(&definition).await.unwrap().unchanged);
    assert!(api.try_register(&definition).await.unwrap().unchanged);
    let other = yaml("kept", "  - name: only\n    handler: {callable: other}\n");
    let refused = refusal(api.try_register(&other).await);
    assert_eq!(refused.code, Code::AlreadyExists);
    assert_eq!(refused.reason.as_deref(), Some("TEMPLATE_EXISTS"));
    let path = format!("/v1/templates/{NAMESPACE}/kept/1.0.0");
    let (_, kept) = rest(&server, Method::GET, &path, None).await;
    assert_eq!(kept["definition"], definition);
}

#[tokio::test]
async fn the_newest_version_is_no_pre_release() {
    let (_server, api) = house(&[]).await;
    for number in ["1.10.0", "1.9.0", "2.0.0-rc.1"] {
        api.register(&version(number, STEPS)).await;
    }
    assert_eq!(api.create("versioned").await.version, "1.10.0");
    let named =
        pb::CreateTaskRequest { version: Some("2.0.0-rc.1".into()), ..api::request("versioned") };
    assert_eq!(api.try_create(named.clone()).await.unwrap().version, "2.0.0-rc.1");
    api.register(&version("2.0.0", STEPS)).await;
    assert_eq!(api.create("versioned").await.version, "2.0.0");
    let absent = pb::CreateTaskRequest { version: Some("3.0.0".into()), ..named };
    assert_eq!(reason(api.try_create(absent).await), "NOT_FOUND");
}

#[tokio::test]
async fn the_input_schema_is_enforced() {
    let schema = "input_schema:\n  type: object\n  required: [order_id]\n  properties:\n    \
                  order_id: {type: string, minLength: 3}\n    amount: {type: number, minimum: 0}\n";
    let (_server, api) = house(&[&format!("{}{schema}", yaml("strict", STEPS))]).await;
    let with =
        |context: &str| pb::CreateTaskRequest { context: context.into(), ..api::request("strict") };
    for (context, part) in [
        ("", "order_id"),
        ("{\"order_id\": 7}", "/order_id"),
        ("{\"order_id\": \"ab\"}", "/order_id"),
        ("{\"order_id\": \"abc\", \"amount\": -1}", "/amount"),
    ] {
        let refused = refusal(api.try_create(with(context)).await);
        assert_eq!(refused.code, Code::InvalidArgument);
        assert_eq!(refused.reason.as_deref(), Some("CONTEXT_INVALID"));
        assert!(refused.to_string().contains(part), "{part} in {refused}");
    }
    api.try_create(with("{\"order_id\": \"abc\", \"more\": true}")).await.unwrap();
}

#[tokio::test]
async fn a_thousand_steps_run_to_their_end() {
    let mut steps = String::from("  - name: first\n    handler: {callable: work}\n");
    for number in 0..998 {
        writeln!(
            steps,
            "  - name: middle_{number}\n    handler: {{callable: work}}\n    dependencies: [first]"
        )
        .unwrap();
    }
    let names: Vec<_> = (0..998).map(|number| format!("middle_{number}")).collect();
    writeln!(
        steps,
        "  - name: last\n    handler: {{callable: work}}\n    dependencies: [{}]",
        names.join(", ")
    )
    .unwrap();
    let definition = yaml("thousand", &steps);
    let (_server, api) = house(&[&definition]).await;
    let id = api.create("thousand").await.task_uuid;
    let mut done = 0;
    loop {
        let leases = api.try_lease(&["work"], 100, PATIENCE).await.unwrap();
        assert!(!leases.is_empty(), "stuck after {done}");
        let last = leases.iter().any(|lease| lease.name == "last");
        for told in join_all(leases.iter().map(|lease| api.try_complete(lease, "1"))).await {
            assert!(!told.unwrap());
            done += 1;
        }
        if last {
            assert_eq!(leases[0].results.len(), 998);
            break;
        }
    }
    assert_eq!(done, 1_000);
    assert_eq!(api.task(&id).await.state(), TaskState::Complete);
    let more = steps + "  - name: too_many\n    handler: {callable: work}\n";
    assert_eq!(reason(api.try_register(&yaml("more", &more)).await), "TEMPLATE_INVALID");
}
