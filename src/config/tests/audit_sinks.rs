//! Where the audit is sent.

use super::*;

fn sink(rest: &str) -> String {
    format!("[[audit.sinks]]\nname = \"one\"\n{rest}\n")
}

#[test]
fn each_kind_of_sink_is_taken() {
    let text = [
        sink("kind = \"file\"\npath = \"/var/log/audit.jsonl\""),
        sink("kind = \"syslog\"\naddress = \"udp://logs.example.org:514\"\nformat = \"ocsf\"")
            .replace("one", "two"),
        sink("kind = \"syslog\"\naddress = \"tls://[::1]:6514\"\nfacility = \"authpriv\"")
            .replace("one", "three"),
        sink("kind = \"syslog\"\naddress = \"unix:///dev/log\"").replace("one", "four"),
        sink("kind = \"otlp\"\nendpoint = \"https://collector:4317\"").replace("one", "five"),
    ]
    .concat();
    let settings = load(&text).unwrap();
    let sinks = &settings.audit.sinks;
    assert!(matches!(&sinks[0].to, AuditTarget::File(path) if path.is_absolute()));
    assert_eq!((sinks[0].format, sinks[1].format), (AuditFormat::Lines, AuditFormat::Ocsf));
    let AuditTarget::Syslog { address: SyslogAddress::Udp(host, 514), facility: 13 } = &sinks[1].to
    else {
        panic!("{sinks:?}")
    };
    assert_eq!(host, "logs.example.org");
    let AuditTarget::Syslog { address: SyslogAddress::Tls(host, 6514, None), facility: 10 } =
        &sinks[2].to
    else {
        panic!("{sinks:?}")
    };
    assert_eq!(host, "::1");
    assert!(matches!(&sinks[4].to, AuditTarget::Otlp { ca: None, .. }));
    let shown = settings.redacted()["audit"].to_string();
    assert!(shown.contains("\"kind\":\"otlp\"") && !shown.contains("collector"), "{shown}");
    assert_eq!(settings.audit.sinks_wait_days, 7);
    assert_eq!(settings.audit.retention_min_days, 1);
    let none = load("[audit]\nretention_mb = 9\nretention_min_days = 0\n").unwrap();
    assert_eq!(none.audit.retention_min_days, 0);
    assert_eq!(none.redacted()["audit"]["retention_min_days"], 0);
}

#[test]
fn a_wrong_sink_is_refused_by_its_key() {
    for (rest, words) in [
        ("kind = \"file\"", "#1: path"),
        ("kind = \"file\"\npath = \"audit.jsonl\"", "absolute"),
        ("kind = \"file\"\npath = \"/a\"\nadress = \"x\"", "adress"),
        ("kind = \"file\"\npath = \"/a\"\nendpoint = \"http://a\"", "#1: endpoint"),
        ("kind = \"file\"\npath = \"/a\"\nformat = \"cef\"", "#1: format"),
        ("kind = \"kafka\"", "#1: kind"),
        ("path = \"/a\"", "`kind` is missing"),
        ("kind = \"syslog\"", "#1: address"),
        ("kind = \"syslog\"\naddress = \"logs:514\"", "#1: address"),
        ("kind = \"syslog\"\naddress = \"tcp://logs\"", "#1: address"),
        ("kind = \"syslog\"\naddress = \"tcp://logs:514/path\"", "#1: address"),
        ("kind = \"syslog\"\naddress = \"tcp://u:secret@logs:514\"", "#1: address"),
        ("kind = \"syslog\"\naddress = \"unix://dev/log\"", "#1: address"),
        ("kind = \"syslog\"\naddress = \"tcp://logs:514\"\nfacility = \"mail\"", "#1: facility"),
        ("kind = \"syslog\"\naddress = \"tcp://logs:514\"\nca_path = \"ca.pem\"", "#1: ca_path"),
        ("kind = \"syslog\"\naddress = \"tls://logs:514\"\nca_path = \"absent.pem\"", "absent.pem"),
        ("kind = \"otlp\"\nendpoint = \"collector:4317\"", "#1: endpoint"),
        ("kind = \"otlp\"\nendpoint = \"http://u:secret@collector:4317\"", "#1: endpoint"),
    ] {
        let said = problem(&sink(rest));
        assert!(said.contains(words) && said.contains("audit.sinks"), "{rest}: {said}");
        assert!(!said.contains("secret"), "{said}");
    }
    let file = sink("kind = \"file\"\npath = \"/a\"");
    assert!(problem(&format!("{file}{file}")).contains("another sink `one`"));
    assert!(problem(&file.replace("one", "O N E")).contains("#1: name"));
    assert!(problem(&format!("[audit]\nenabled = false\n{file}")).contains("audit.sinks"));
    assert!(problem("[audit]\nsinks_wait_days = 99999\n").contains("audit.sinks_wait_days"));
}
