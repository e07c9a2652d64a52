use std::fmt::Write as _;

use proptest::prelude::*;

use super::{super::task::Backoff, *};

const ORDER: &str = include_str!("../../../tests/fixtures/templates/order_fulfillment.yaml");
const ONBOARDING: &str = include_str!("../../../tests/fixtures/templates/customer_onboarding.yaml");
const REPORT: &str = include_str!("../../../tests/fixtures/templates/nightly_report.yaml");

fn parse_in(namespace: &str, text: &str) -> Result<Parsed, Vec<Finding>> {
    Template::parse(&Namespace::parse(namespace).unwrap(), text)
}

fn parse(text: &str) -> Result<Parsed, Vec<Finding>> {
    parse_in("shop", text)
}

fn errors(text: &str) -> Vec<String> {
    parse(text).map(|_| ()).unwrap_err().iter().map(ToString::to_string).collect()
}

/// The only fault of a text.
fn error(text: &str) -> String {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors[0].clone()
}

fn warnings(parsed: &Parsed) -> Vec<String> {
    parsed.warnings.iter().map(ToString::to_string).collect()
}

const HEAD: &str = "name: t\nnamespace_name: shop\nversion: 1.0.0\n";

/// A template of one step with more lines below the step; those begin at
/// line 7.
fn step(lines: &str) -> String {
    let mut text = format!("{HEAD}steps:\n  - name: a\n    handler: {{callable: h}}\n");
    for line in lines.lines() {
        writeln!(text, "    {line}").unwrap();
    }
    text
}

/// A template with an input schema; its lines begin at line 7.
fn with_schema(lines: &str) -> String {
    let mut text =
        format!("{HEAD}steps: [{{name: a, handler: {{callable: h}}}}]\n\ninput_schema:\n");
    for line in lines.lines() {
        writeln!(text, "  {line}").unwrap();
    }
    text
}

fn template(text: &str) -> Template {
    parse(text).map_err(|errors| format!("{errors:#?}")).unwrap().template
}

fn check(template: &Template, context: &str) -> Vec<String> {
    template.check_context(&Json::parse(context).unwrap()).err().unwrap_or_default()
}

#[test]
fn an_order_is_a_diamond() {
    let parsed = parse(ORDER).unwrap();
    assert_eq!(warnings(&parsed), Vec::<String>::new());
    let template = parsed.template;
    assert_eq!(
        (template.namespace.as_str(), &*template.name, template.version.to_string()),
        ("shop", "order_fulfillment", "1.0.0".to_owned())
    );
    let names: Vec<&str> = template.steps.iter().map(|step| &*step.name).collect();
    assert_eq!(
        names,
        ["validate_order", "reserve_stock", "charge_payment", "ship_order", "send_confirmation"]
    );
    let waits: Vec<_> = template.steps.iter().map(|step| step.depends_on.clone()).collect();
    assert_eq!(waits, [vec![], vec![0], vec![0], vec![1, 2], vec![3]]);
    assert_eq!(template.dependants(), [vec![1, 2], vec![3], vec![3], vec![4], vec![]]);
    let handlers = template.handlers();
    let handlers: Vec<&str> = handlers.iter().map(|name| &**name).collect();
    assert_eq!(
        handlers,
        ["charge_payment", "reserve_stock", "send_confirmation", "ship_order", "validate_order"]
    );
    let charge = &template.steps[2];
    assert_eq!(charge.initialization.as_str(), r#"{"currency":"EUR","capture":true}"#);
    assert_eq!(
        charge.retry,
        RetryPolicy {
            retryable: true,
            max_attempts: 3,
            backoff: Backoff::Exponential,
            base_ms: 200,
            max_ms: 30_000
        }
    );
    assert_eq!(template.steps[3].timeout_ms, 120_000);
}

#[test]
fn defaults_are_those_of_the_contract() {
    let template = template(&step(""));
    let step = &template.steps[0];
    assert_eq!(step.retry, RetryPolicy::default());
    assert_eq!(step.timeout_ms, 300_000);
    assert_eq!(step.initialization.as_str(), "{}");
    assert_eq!((step.description.as_str(), &step.method), ("", &None));
    assert_eq!(template.input_schema(), None);
    assert_eq!(check(&template, r#"{"any": "thing"}"#), Vec::<String>::new());
}

#[test]
fn a_template_may_depend_on_several_systems() {
    let depending = |secondary: &str| {
        format!("system_dependencies: {{primary: crm, secondary: {secondary}}}\n{}", step(""))
    };
    for understood in ["mailer", "[mailer, billing]", "[]"] {
        let parsed = parse(&depending(understood)).map_err(|errors| format!("{errors:#?}"));
        assert_eq!(parsed.unwrap().warnings.len(), 1, "{understood}");
    }
    let faults = errors(&depending("[mailer, {name: billing}]"));
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].contains("system_dependencies.secondary[1]"), "{faults:?}");
}

#[test]
fn what_taskers_users_write_is_understood() {
    let parsed = parse_in("crm.eu", ONBOARDING).map_err(|errors| format!("{errors:#?}")).unwrap();
    let account = &parsed.template.steps[0];
    assert_eq!(
        account.retry,
        RetryPolicy {
            retryable: true,
            max_attempts: 5,
            backoff: Backoff::Linear,
            base_ms: 500,
            max_ms: 60_000
        }
    );
    assert_eq!(account.method.as_deref(), Some("call"));
    assert_eq!(&*account.handler, "Crm::Accounts::Create");
    // Every digit as it is written.
    assert!(account.initialization.as_str().contains(r#""per_second":12.50"#));
    let welcome = &parsed.template.steps[1];
    assert_eq!((welcome.retry.retryable, welcome.retry.max_attempts), (false, 1));
    assert!(welcome.initialization.as_str().contains(r#""template":"welcome""#));
    assert!(welcome.initialization.as_str().contains(r#""endpoint":"https://crm"#));
    let warned: Vec<(&str, u32)> =
        parsed.warnings.iter().map(|finding| (finding.path.as_str(), finding.line)).collect();
    assert_eq!(
        warned,
        [
            ("lifecycle", 12),
            ("system_dependencies", 18),
            ("domain_events", 22),
            ("steps[0].handler.resolver", 47),
            ("steps[0].system_dependency", 51),
            ("steps[0].lifecycle", 58),
            ("steps[0].result_schema", 62),
            ("steps[1].publishes_events", 75),
            ("environments", 84),
        ]
    );
    assert!(
        parsed.warnings.iter().all(|w| w.message.ends_with("understood but has no effect yet"))
    );
    assert!(parse_in("analytics", REPORT).is_ok());
}

#[test]
fn every_fault_is_told_with_its_place() {
    let text = "\
name: a b
namespace_name: shop
version: 1.0
steps:
  - name: one
    handler: {callable: h}
    depends_on: [two, ones]
    colour: red
  - handler: {}
    timeout_seconds: 0
";
    assert_eq!(
        errors(text),
        [
            "line 1, column 7: name: `a b` is not a name: 1 to 128 ASCII letters, digits and `_` \
             `.` `-`",
            "line 3, column 10: version: `1.0` is not a semantic version such as 1.0.0: \
             unexpected end of input while parsing minor version number",
            "line 7, column 18: steps[0].depends_on[0]: there is no step `two`",
            "line 7, column 23: steps[0].depends_on[1]: there is no step `ones`; did you mean \
             `one`?",
            "line 8, column 5: steps[0].colour: `colour` is not a field here",
            "line 9, column 5: steps[1].name: `name` is required",
            "line 9, column 14: steps[1].handler.callable: `callable` is required",
            "line 10, column 22: steps[1].timeout_seconds: 0 is not a whole number from 1 to 86400",
        ]
    );
}

#[test]
fn required_fields_are_missed_by_name() {
    assert_eq!(
        errors("description: nothing else\n"),
        ["name", "namespace_name", "version", "steps"]
            .map(|name| format!("line 1, column 1: {name}: `{name}` is required"))
    );
    assert_eq!(
        error(&format!("{HEAD}steps: []\n")),
        "line 4, column 8: steps: a template has at least one step"
    );
    assert_eq!(
        error(&format!("{HEAD}steps:\n  - name: a\n")),
        "line 5, column 5: steps[0].handler: `handler` is required"
    );
    assert_eq!(error("just text"), "line 1, column 1: expected a map, found text");
    assert!(error("").contains("expected a map, found nothing"));
}

#[test]
fn unknown_fields_name_the_nearest() {
    for (text, expected) in [
        (
            format!("{HEAD}step: []\nsteps: [{{name: a, handler: {{callable: h}}}}]"),
            "line 4, column 1: step: `step` is not a field here; did you mean `steps`?",
        ),
        (
            step("retry: {max_atempts: 2}"),
            "line 7, column 13: steps[0].retry.max_atempts: `max_atempts` is not a field here; \
             did you mean `max_attempts`?",
        ),
        (
            step("lifecycle: {max_retry: 2}"),
            "line 7, column 17: steps[0].lifecycle.max_retry: `max_retry` is not a field here; \
             did you mean `max_retries`?",
        ),
        (
            step("batch_config: {zzz: 2}"),
            "line 7, column 20: steps[0].batch_config.zzz: `zzz` is not a field here",
        ),
        (format!("{}1: x\n", step("")), "line 7, column 1: 1: `1` is not a field here"),
    ] {
        assert_eq!(error(&text), expected);
    }
}

#[test]
fn keys_are_given_once_and_are_text() {
    assert_eq!(
        error(&format!("name: t\n{}", step(""))),
        "line 2, column 1: name: `name` is given twice"
    );
    assert_eq!(
        errors(&format!("{}metadata:\n  a: {{b: 1, b: 2}}\n  a: 3\n", step(""))),
        [
            "line 8, column 13: metadata.a.b: `b` is given twice",
            "line 9, column 3: metadata.a: `a` is given twice",
        ]
    );
    assert_eq!(
        error(&format!("{}metadata:\n  ? [a]\n  : 1\n", step(""))),
        "line 8, column 5: metadata: a list cannot be a key; write text"
    );
}

#[test]
fn se_08_the_namespace_is_that_of_the_request() {
    assert_eq!(
        parse_in("other", &step("")).unwrap_err()[0].to_string(),
        "line 2, column 17: namespace_name: `shop` is not the namespace of the request, `other`: \
         make them the same"
    );
    let bad = step("").replace("shop", "-shop");
    assert!(
        error(&bad).starts_with("line 2, column 17: namespace_name: `-shop` is not a namespace")
    );
}

#[test]
fn names_are_of_their_grammar() {
    for bad in ["\"\"", "\"a b\"", "a/b", "é", &"x".repeat(129), "\"a\\nb\""] {
        let text = step("").replace("name: a\n", &format!("name: {bad}\n"));
        assert!(error(&text).starts_with("line 5, column 11: steps[0].name: `"), "{bad}");
    }
    let long = "x".repeat(128);
    assert!(parse(&step("").replace("name: a\n", &format!("name: {long}\n"))).is_ok());
    assert!(parse(&step("").replace("callable: h", "callable: A::b/c.d-e_f")).is_ok());
    assert!(error(&step("").replace("callable: h", "callable: a b")).contains("handler.callable"));
    assert_eq!(
        error(&step("").replace("name: a\n", "name: 12\n")),
        "line 5, column 11: steps[0].name: expected text, found the number 12: put it in quotes"
    );
    // YAML 1.2: these are text.
    assert_eq!(&*template(&step("").replace("name: a\n", "name: no\n")).steps[0].name, "no");
}

#[test]
fn versions_are_semantic() {
    for bad in ["1", "1.0", "v1.0.0", "1.0.0.0", "01.0.0", "[1]", "\"\""] {
        let text = step("").replace("version: 1.0.0", &format!("version: {bad}"));
        assert!(error(&text).starts_with("line 3, column 10: version: "), "{bad}");
    }
    let version = template(&step("").replace("1.0.0", "2.0.0-rc.1+7")).version;
    assert_eq!(version.to_string(), "2.0.0-rc.1+7");
}

#[test]
fn steps_have_one_name_each() {
    let text = format!("{}  - {{name: a, handler: {{callable: h}}}}\n", step(""));
    assert_eq!(
        error(&text),
        "line 7, column 12: steps[1].name: `a` is the name of steps[0] already"
    );
}

fn graph(lines: &[(&str, &str)]) -> String {
    let mut text = format!("{HEAD}steps:\n");
    for (name, waits) in lines {
        writeln!(text, "  - {{name: {name}, handler: {{callable: h}}, depends_on: [{waits}]}}")
            .unwrap();
    }
    text
}

#[test]
fn cycles_are_shown() {
    assert_eq!(
        error(&graph(&[("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")])),
        "line 7, column 52: steps[2].depends_on[0]: steps wait for each other in a cycle: \
         a -> b -> c -> a"
    );
    assert_eq!(
        error(&graph(&[("a", "a")])),
        "line 5, column 52: steps[0].depends_on[0]: `a` cannot wait for itself"
    );
    assert_eq!(
        errors(&graph(&[("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")])).len(),
        2,
        "each cycle is told"
    );
    assert_eq!(
        error(&graph(&[("a", ""), ("b", "a, a")])),
        "line 6, column 55: steps[1].depends_on[1]: `a` is given twice"
    );
    // A diamond is no cycle.
    assert!(parse(&graph(&[("d", "b, c"), ("b", "a"), ("c", "a"), ("a", "")])).is_ok());
}

#[test]
fn a_chain_may_be_as_long_as_a_template() {
    let chain = |steps: usize, first: &str| {
        let mut text = graph(&[("s0", first)]);
        for step in 1..steps {
            writeln!(
                text,
                "  - {{name: s{step}, handler: {{callable: h}}, depends_on: [s{}]}}",
                step - 1
            )
            .unwrap();
        }
        text
    };
    let template = template(&chain(STEPS_MAX, ""));
    assert_eq!(template.steps.len(), STEPS_MAX);
    assert_eq!(template.steps[999].depends_on, [998]);
    let cycle = error(&chain(STEPS_MAX, "s999"));
    assert!(cycle.contains("s0 -> s999 -> s998 -> "), "{cycle}");
    assert!(cycle.ends_with("… 980 more … -> s0"), "{cycle}");
    assert_eq!(
        error(&chain(STEPS_MAX + 1, "")),
        "line 5, column 3: steps: 1001 steps; a template has at most 1000"
    );
}

#[test]
fn numbers_are_in_their_ranges() {
    for (good, expected) in [("0", 1), ("1", 1), ("100", 100)] {
        let template = template(&step(&format!("retry: {{max_attempts: {good}}}")));
        assert_eq!(template.steps[0].retry.max_attempts, expected);
    }
    for (field, bad) in [
        ("max_attempts", "101"),
        ("max_attempts", "-1"),
        ("max_attempts", "2.0"),
        ("max_attempts", "\"3\""),
        ("limit", "99999999999999999999999"),
        ("backoff_base_ms", "86400001"),
        ("initial_delay", "-5"),
        ("max_backoff_ms", "86400001"),
        ("max_delay", "true"),
    ] {
        let error = error(&step(&format!("retry: {{{field}: {bad}}}")));
        let start = format!("line 7, column {}: steps[0].retry.{field}: ", 15 + field.len());
        assert!(error.starts_with(&start) && error.contains("whole number from 0 to"), "{error}");
    }
    for bad in ["0", "86401", "1.5", "1e3", "soon", "0x1_0"] {
        let error = error(&step(&format!("timeout_seconds: {bad}")));
        assert!(error.starts_with("line 7, column 22: steps[0].timeout_seconds: "), "{error}");
    }
    assert_eq!(template(&step("timeout_seconds: 86400")).steps[0].timeout_ms, 86_400_000);
}

#[test]
fn a_first_pause_above_the_usual_limit_stands() {
    let policy = template(&step("retry: {backoff_base_ms: 60000}")).steps[0].retry;
    assert_eq!((policy.base_ms, policy.max_ms), (60_000, 60_000));
    let parsed = parse(&step("retry: {backoff_base_ms: 500, max_backoff_ms: 100}")).unwrap();
    assert_eq!(
        warnings(&parsed),
        ["line 7, column 51: steps[0].retry.max_backoff_ms: shorter than the first pause of 500 \
          ms: every pause takes 100 ms"]
    );
}

#[test]
fn synonyms_are_given_once() {
    for (lines, place, second) in [
        ("retry: {max_attempts: 2, limit: 2}", "line 7, column 37: steps[0].retry.", "limit"),
        (
            "retry: {initial_delay: 2, backoff_base_ms: 2}",
            "line 7, column 28: steps[0].retry.",
            "initial_delay",
        ),
        (
            "retry: {max_delay: 9000, max_backoff_ms: 9000}",
            "line 7, column 24: steps[0].retry.",
            "max_delay",
        ),
        ("depends_on: []\ndependencies: []", "line 8, column 19: steps[0].", "dependencies"),
    ] {
        let error = error(&step(lines));
        assert!(
            error.starts_with(&format!("{place}{second}: `{second}` says the same as")),
            "{error}"
        );
    }
}

#[test]
fn backoffs_and_types_are_known() {
    assert_eq!(
        error(&step("retry: {backoff: lineal}")),
        "line 7, column 22: steps[0].retry.backoff: `lineal` is not a backoff: exponential, \
         linear or fixed; did you mean `linear`?"
    );
    for later in ["decision", "deferred_convergence", "batchable", "batch_worker"] {
        assert_eq!(
            error(&step(&format!("type: {later}"))),
            format!(
                "line 7, column 11: steps[0].type: steps of type `{later}` are not supported yet; \
                 only `standard` ones are"
            )
        );
    }
    assert!(error(&step("type: standrad")).ends_with("did you mean `standard`?"));
    assert!(parse(&step("type: standard")).is_ok());
}

#[test]
fn se_30_what_a_step_asks_for_is_named_one_by_one() {
    let text = "permissions: [tasks:create, tasks:read]\naudiences: [vault]\nspawns: \
                [order.line]";
    let asked = parse(&step(text)).unwrap().template.steps[0].asked.clone();
    assert_eq!(asked.permissions.names(), ["tasks:create", "tasks:read"]);
    assert_eq!((&*asked.audiences[0], &*asked.spawns[0]), ("vault", "order.line"));
    assert!(parse(&step("")).unwrap().template.steps[0].asked.is_nothing());
    for (text, says) in [
        ("permissions: [\"*\"]", "is a wildcard"),
        ("permissions: [\"tasks:*\"]", "is a wildcard"),
        ("permissions: [api_keys:admin]", "no step can have `api_keys:admin`"),
        ("permissions: [templates:register]", "no step can have"),
        ("permissions: [rules:read]", "no step can have"),
        ("permissions: [rules:write]", "no step can have"),
        ("permissions: [commands:execute]", "no step can have"),
        ("permissions: [work:lease]", "no step can have"),
        ("permissions: [task:create]", "did you mean `tasks:create`"),
        ("permissions: [tasks:read, tasks:read]", "given twice"),
        ("permissions: tasks:read", "expected a list"),
        ("audiences: [\"https://v\"]", "not the short name"),
        ("audiences: [bailiwick]", "without that"),
        ("spawns: [\"a b\"]", "is not a name"),
    ] {
        let error = error(&step(text));
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn environments_are_checked_though_they_have_no_effect() {
    let text = format!(
        "{}environments:\n  test:\n    steps:\n      - {{name: b, timeout: 3}}\n      - {{name: \
         ALL, retry: {{limit: 900}}}}\n",
        step("")
    );
    let errors = errors(&text);
    assert_eq!(errors.len(), 3, "{errors:#?}");
    assert!(errors[0].contains("there is no step `b`"), "{errors:#?}");
    assert!(errors[1].contains("`timeout` is not a field here"), "{errors:#?}");
    assert!(errors[2].starts_with("line 11, column 36: environments.test.steps[1].retry.limit"));
}

#[test]
fn settings_are_an_object_of_json() {
    let with = |value: &str| {
        step("").replace("callable: h", &format!("callable: h, initialization: {value}"))
    };
    for (value, json) in [
        ("{}", "{}"),
        ("null", "{}"),
        (
            "{a: 1, b: -2, c: 1.10, d: 12345678901234567890123, e: 0x1F}",
            r#"{"a":1,"b":-2,"c":1.10,"d":12345678901234567890123,"e":31}"#,
        ),
        (
            "{a: no, b: 007, c: 1_000, d: true, e: ~, f: '1'}",
            r#"{"a":"no","b":"007","c":"1_000","d":true,"e":null,"f":"1"}"#,
        ),
        (
            r#"{a: "q\"\n\u0001", 1: x, true: [y, {}]}"#,
            r#"{"a":"q\"\n\u0001","1":"x","true":["y",{}]}"#,
        ),
    ] {
        let template = template(&with(value));
        assert_eq!(template.steps[0].initialization.as_str(), json);
        assert!(Json::parse_object(json).is_ok());
    }
    for bad in ["[1]", "text", "3"] {
        assert!(error(&with(bad)).contains("initialization: expected a map"), "{bad}");
    }
}

#[test]
fn broken_yaml_is_one_fault_with_its_place() {
    for (text, place) in [
        ("name: [a", "line 1"),
        ("name: a\n\tb: c", "line "),
        ("name: 'a\n", "line 1"),
        ("a: b: c", "line 1"),
        ("name: *nothing", "line 1, column 7"),
        ("name: &x [*x]", "line 1"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("name: !!binary aGk=\nversion: !custom x", ""),
        ("name: .nan", "line 1, column 7"),
    ] {
        let error = error(text);
        assert!(error.starts_with(place), "{text}: {error}");
        assert!(error.contains("not readable as YAML: "), "{text}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_text_of_10_mb_is_refused_at_once() {
    let error = error(&format!("{}# {}", step(""), "x".repeat(10_000_000)));
    assert!(error.contains("at most 1048576 are taken"), "{error}");
}

#[test]
fn deep_nesting_is_refused() {
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", ""), ("[{a: ", "}]")] {
        for levels in [70, 1_000, 100_000] {
            let text = format!(
                "{}metadata: \n {}1{}",
                step(""),
                open.repeat(levels),
                close.repeat(levels)
            );
            assert!(error(&text).contains("not readable as YAML"), "{open} {levels}");
        }
    }
}

#[test]
fn alias_bombs_end_early() {
    let mut laughs = "a0: &a0 [lol, lol]\n".to_owned();
    for level in 1..40 {
        let before = level - 1;
        writeln!(laughs, "a{level}: &a{level} [*a{before}, *a{before}]").unwrap();
    }
    let long = format!("a: &a \"{}\\n\"\nb: [{}]\n", "x".repeat(500_000), "*a, ".repeat(5_000));
    let wide = format!("a: &a [{}]\nb: [{}]\n", "x, ".repeat(5_000), "*a, ".repeat(5_000));
    let mut merges = "a0: &a0 {x: 1}\n".to_owned();
    for level in 1..3_000 {
        let before = level - 1;
        writeln!(merges, "a{level}: &a{level} {{<<: [*a{before}, *a{before}], k{level}: 1}}")
            .unwrap();
    }
    let nested = format!("{}x{}", "&a [".repeat(23), "]".repeat(23));
    let anchors: String = (0..60_000).fold("m:\n".to_owned(), |mut text, n| {
        writeln!(text, " - &b{n} x").unwrap();
        text
    });
    for (name, bomb) in [
        ("laughs", laughs),
        ("long", long),
        ("wide", wide),
        ("merges", merges),
        ("nested", nested),
        ("anchors", anchors),
    ] {
        assert!(!errors(&bomb).is_empty(), "{name}");
    }
}

#[test]
fn wide_definitions_are_answered_soon() {
    let all: Vec<String> = (0..400).map(|step| format!("s{step}")).collect();
    let all_wait: Vec<(&str, &str)> = all.iter().map(|name| (name.as_str(), "@")).collect();
    let dense = graph(&all_wait).replace('@', &all.join(","));
    assert!(dense.len() < DEFINITION_BYTES_MAX);
    let mut environments = format!("{}environments:\n", step(""));
    for name in 0..60_000 {
        writeln!(environments, " e{name}: {{}}").unwrap();
    }
    let mut data = format!("{}metadata:\n", step(""));
    for name in 0..60_000 {
        writeln!(data, " m{name}: 1").unwrap();
    }
    assert_eq!(errors(&dense).len(), FINDINGS_MAX + 1);
    assert!(error(&environments).contains("60000 environments; a template has at most 100"));
    assert!(parse(&data).is_ok());
}

#[test]
fn faults_are_bounded_and_so_is_their_text() {
    let mut text = step("");
    for field in 0..30_000 {
        writeln!(text, "field_{field}: 1").unwrap();
    }
    writeln!(text, "\"{}\": 1", "x".repeat(500)).unwrap();
    let errors = errors(&text);
    assert_eq!(errors.len(), FINDINGS_MAX + 1);
    assert!(errors.iter().all(|error| error.chars().count() < 400));
}

#[test]
fn a_context_meets_its_schema_or_hears_every_violation() {
    let template = template(ORDER);
    let good = r#"{"order_id": "o-1", "items": [{"sku": "x", "quantity": 2}]}"#;
    assert_eq!(check(&template, good), Vec::<String>::new());
    assert_eq!(
        check(&template, r#"{"order_id": 1, "items": [{"sku": "x", "quantity": 0}, {"sku": 5}]}"#),
        [
            "/items/0/quantity: the value is less than the minimum of 1",
            "/items/1: \"quantity\" is a required property",
            "/items/1/sku: the value is not of type \"string\"",
            "/order_id: the value is not of type \"string\"",
        ]
    );
    assert_eq!(
        check(&template, "{}"),
        ["/: \"order_id\" is a required property", "/: \"items\" is a required property"]
    );
    assert!(check(&template, r#"{"order_id": 1e999}"#)[0].starts_with("/: not readable"));
}

#[test]
fn violations_are_bounded_and_echo_little() {
    let template = template(&with_schema(
        "additionalProperties: false\nproperties: {items: {items: {type: string}}}",
    ));
    let secret = "s".repeat(5_000);
    let told = check(&template, &format!(r#"{{"{secret}": 1, "items": ["{secret}"]}}"#));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].matches('s').count() <= 100, "{told:?}");
    let many = format!(r#"{{"items": [{}1]}}"#, "1,".repeat(10_000));
    let told = check(&template, &many);
    assert_eq!(told.len(), VIOLATIONS_MAX + 1);
    assert_eq!(told[VIOLATIONS_MAX], "/: there are more than 50 violations");
    let deep = self::template(&with_schema(
        "$ref: '#/$defs/d'\n$defs: {d: {additionalProperties: {$ref: '#/$defs/d'}, type: object}}",
    ));
    let told = check(&deep, &format!(r#"{{"{secret}": {{"{secret}": 1}}}}"#));
    assert!(told[0].chars().filter(|c| *c == 's').count() <= 100, "{told:?}");
}

#[test]
fn integers_are_compared_exactly() {
    let template = template(&with_schema(
        "properties: {n: {maximum: 9007199254740992}, m: {type: integer, minimum: \
         -9223372036854775807}}",
    ));
    assert_eq!(check(&template, r#"{"n": 9007199254740992}"#), Vec::<String>::new());
    assert_eq!(check(&template, r#"{"n": 9007199254740993}"#).len(), 1);
    assert_eq!(check(&template, r#"{"m": -9223372036854775807}"#), Vec::<String>::new());
    assert_eq!(check(&template, r#"{"m": -9223372036854775808}"#).len(), 1);
}

#[test]
fn schemas_refer_to_themselves_only() {
    for target in [
        "file:///etc/passwd",
        "https://example.com/s.json",
        "other.json",
        "/etc/passwd",
        "https://json-schema.org/draft/2020-12/schema",
    ] {
        let error = error(&with_schema(&format!("properties:\n  a: {{$ref: '{target}'}}")));
        assert!(
            error.starts_with("line 8, column 15: input_schema.properties.a.$ref: `")
                && error.contains("is outside of this schema"),
            "{error}"
        );
    }
    assert!(error(&with_schema("$id: https://example.com/")).contains("`$id` is not supported"));
    assert!(error(&with_schema("$dynamicRef: '#a'")).contains("`$dynamicRef` is not supported"));
    let unknown = error(&with_schema("$schema: https://example.com/mine"));
    assert!(unknown.contains("not a valid JSON Schema"), "{unknown}");
    // As a name or as data they are no references.
    let text =
        "properties: {$ref: {type: string}, $id: {type: string}}\nconst: {$ref: 'file:///x'}";
    assert!(parse(&with_schema(text)).is_ok());
}

#[test]
fn faults_of_a_schema_have_their_places() {
    for (lines, start) in [
        ("type: strnig", "line 7, column 9: input_schema.type: not a valid JSON Schema: "),
        (
            "properties:\n  a: {minLength: -1}",
            "line 8, column 20: input_schema.properties.a.minLength: not a valid JSON Schema: ",
        ),
        (
            "properties:\n  a: {pattern: '('}",
            "line 8, column 18: input_schema.properties.a.pattern: not a valid JSON Schema: ",
        ),
        (
            "properties:\n  a: {pattern: '(?=a)b'}",
            "line 8, column 18: input_schema.properties.a.pattern: not a valid JSON Schema: ",
        ),
        ("a: 1\na: 2", "line 8, column 3: input_schema.a: `a` is given twice"),
        ("$ref: '#/$defs/none'", "line 7, column "),
    ] {
        let error = error(&with_schema(lines));
        assert!(error.starts_with(start), "{error}");
    }
    let text = step("") + "input_schema: [1]\n";
    assert!(error(&text).contains("input_schema: expected a JSON Schema as a map"));
}

#[test]
fn schemas_that_never_end_are_refused() {
    for lines in [
        "$ref: '#'",
        "allOf: [{$ref: '#/$defs/a'}]\n$defs: {a: {anyOf: [{$ref: '#/$defs/b'}]}, b: {not: \
         {$ref: '#/$defs/a'}}}",
        "$ref: '#x'\n$defs: {a: {$anchor: x, if: {$ref: '#/%24defs/a'}}}",
    ] {
        let error = error(&with_schema(lines));
        assert!(error.contains("leads back to itself without going into the input"), "{error}");
    }
    let mut doubling = "allOf: [{$ref: '#/$defs/d0'}]\n$defs:\n".to_owned();
    for level in 0..30 {
        let next = level + 1;
        writeln!(
            doubling,
            "  d{level}: {{allOf: [{{$ref: '#/$defs/d{next}'}}, {{$ref: '#/$defs/d{next}'}}]}}"
        )
        .unwrap();
    }
    doubling.push_str("  d30: {type: object}\n");
    assert!(error(&with_schema(&doubling)).contains("unfolds to more than 2000 schemas"));
    let patterns: String = (0..=PATTERNS_MAX).fold("allOf:\n".to_owned(), |mut text, n| {
        writeln!(text, "  - {{pattern: 'a{n}'}}").unwrap();
        text
    });
    assert!(error(&with_schema(&patterns)).contains("101 patterns"));
    assert!(!errors(&with_schema("pattern: '(\\w{1000}){1000}'")).is_empty());
}

#[test]
fn a_check_that_doubles_at_each_level_ends() {
    let template = template(&with_schema(
        "$ref: '#/$defs/t'\n$defs:\n  t:\n    type: object\n    properties:\n      a: {allOf: \
         [{$ref: '#/$defs/t'}, {$ref: '#/$defs/t'}]}\n      b: {type: string}",
    ));
    assert_eq!(check(&template, r#"{"a": {"a": {"b": "x"}}}"#), Vec::<String>::new());
    assert_eq!(check(&template, r#"{"a": {"b": 1}}"#).len(), 2);
    let deep = format!("{}{{\"b\": 1}}{}", r#"{"a": "#.repeat(100), "}".repeat(100));
    let told = check(&template, &deep);
    assert_eq!(told, ["/: the input is too costly to check against its schema"]);
    // An ordinary tree is no such thing.
    let tree = self::template(&with_schema(
        "properties: {left: {$ref: '#'}, right: {$ref: '#'}, v: {type: integer}}",
    ));
    assert_eq!(check(&tree, r#"{"left": {"v": 1, "right": {"v": "x"}}}"#).len(), 1);
}

#[test]
fn neither_compiling_nor_checking_exhausts_the_stack() {
    let chain = |defs: usize, link: &str| {
        let mut text = "$ref: '#/$defs/d0'\n$defs:\n".to_owned();
        for level in 0..defs {
            let next = format!("{{$ref: '#/$defs/d{}'}}", level + 1);
            writeln!(text, "  d{level}: {}", link.replace('@', &next)).unwrap();
        }
        writeln!(text, "  d{defs}: {{type: integer}}").unwrap();
        with_schema(&text)
    };
    let context = format!("{}0{}", r#"{"a":"#.repeat(127), "}".repeat(127));
    for (defs, link) in [
        (30, "{properties: {a: @}}"),
        (45, "@"),
        (2, "{allOf: [{anyOf: [{allOf: [{anyOf: [{allOf: [{anyOf: [{allOf: [@]}]}]}]}]}]}]}"),
    ] {
        check(&template(&chain(defs, link)), &context);
        let error = error(&chain(1_000, link));
        assert!(error.contains("more than 200 levels deep together"), "{error}");
    }
    let recursive = |nested: usize| {
        let (open, close) = ("{allOf: [".repeat(nested), "]}".repeat(nested));
        template(&with_schema(&format!(
            "additionalProperties: {open}{{$ref: '#'}}{close}\ntype: object"
        )))
    };
    assert!(check(&recursive(0), &context)[0].ends_with("is not of type \"object\""));
    assert_eq!(
        check(&recursive(6), &context),
        ["/: the input is nested too deep to check it against its schema"]
    );
    let shallow = format!("{}0{}", r#"{"a":"#.repeat(45), "}".repeat(45));
    assert!(check(&recursive(6), &shallow)[0].ends_with("is not of type \"object\""));
}

#[test]
fn the_answer_is_the_same_every_time() {
    let text = with_schema("type: strnig") + "zz: 1\nyy: 2\n";
    let first = errors(&text);
    assert!(first.len() >= 3);
    for _ in 0..5 {
        assert_eq!(errors(&text), first);
    }
}

/// Pieces of definitions, so that random texts get past the first checks.
const PIECES: [&str; 28] = [
    "name: ",
    "steps:\n",
    "  - ",
    "handler: ",
    "{",
    "}",
    "[",
    "]",
    "callable: h",
    "\n",
    "    ",
    "input_schema: ",
    "$ref: '#'",
    "type: ",
    "properties: ",
    "&a ",
    "*a",
    "<<: ",
    "? ",
    ": ",
    "\"",
    "'",
    "|\n",
    "!!str ",
    "depends_on: ",
    "---\n",
    "retry: ",
    "1e5",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_make_it_panic_or_stall(bytes in prop::collection::vec(any::<u8>(), 0..4_000)) {
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(parse(&text).is_err());
    }

    #[test]
    fn no_pieces_make_it_panic_or_stall(
        pieces in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..300),
        at in 0_usize..1_000,
    ) {
        let mut text = ORDER.to_owned();
        let lines = text.match_indices('\n').map(|(at, _)| at + 1).collect::<Vec<_>>();
        text.insert_str(lines[at % lines.len()], &pieces.concat());
        for text in [text, pieces.concat()] {
            if let Err(errors) = parse(&text) {
                prop_assert!(!errors.is_empty());
            }
        }
    }
}
