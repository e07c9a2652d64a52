//! TLS, and the authorities of certificates.

use super::*;

#[test]
fn tls_is_whole_or_not_there() {
    for (text, key) in [
        ("tls_cert = \"c.pem\"", "server.tls_key"),
        ("tls_key = \"k.pem\"", "server.tls_cert"),
        ("client_ca = \"ca.pem\"", "server.client_ca"),
        ("client_trust_domains = [\"a\"]", "server.client_trust_domains"),
        ("client_ca = \"ca.pem\"\nclient_trust_domains = [\"A\"]", "server.client_trust_domains"),
        (
            "client_authorities = [{ ca = \"a\", trust_domains = [\"a\"] }]",
            "server.client_authorities",
        ),
    ] {
        let error = load(&format!("[server]\n{text}")).unwrap_err();
        assert!(matches!(&error, Error::Invalid { key: found, .. } if found == key), "{error}");
    }
    assert_eq!(load("[server]\ntls_cert = \"\"\ntls_key = \"\"").unwrap().server.tls, None);
}

#[test]
fn se_46_a_rule_for_certificates_is_checked() {
    let tls = "[server]\ntls_cert = \"c\"\ntls_key = \"k\"\nclient_ca = \"a\"\nclient_trust_domains = [\"shop\"]\n";
    let rule = |spiffe: &str, permission: &str| {
        format!("[[auth.certificates]]\nspiffe = \"{spiffe}\"\npermissions = [\"{permission}\"]\n")
    };
    let with = |rules: &str| load(&format!("{tls}{rules}[auth]\nenabled = true\n"));
    let settings = with(&rule("spiffe://shop/workers/*", "work:lease")).unwrap();
    let Mode::On(credentials) = settings.auth.mode else { panic!("off") };
    assert_eq!(&*credentials.certificates.rules[0].spiffe, "spiffe://shop/workers/*");
    for (rules, problem) in [
        (rule("spiffe://shop/*/a", "*"), "must be spiffe://"),
        (rule("spiffe://shop/a*", "*"), "must be spiffe://"),
        (rule("spiffe://*/a", "*"), "must be spiffe://"),
        (rule("spiffe://*", "*"), "must be spiffe://"),
        (rule("spiffe://other/a", "*"), "does not list `other`"),
        (rule("spiffe://shop/a", "tasks:fly"), "unknown permission `tasks:fly`"),
        (rule("spiffe://shop/a", "*").repeat(2), "has the same `spiffe` as #1"),
    ] {
        let error = with(&rules).unwrap_err().to_string();
        assert!(error.contains("auth.certificates #") && error.contains(problem), "{error}");
    }
    let error = load(&rule("spiffe://shop/a", "*")).unwrap_err().to_string();
    assert!(error.contains("auth.certificates") && error.contains("server.client_ca"), "{error}");
}

#[test]
fn se_46_an_authority_comes_with_its_trust_domains() {
    let with = |entries: &str| {
        let rule =
            "[[auth.certificates]]\nspiffe = \"spiffe://acme.example/a\"\npermissions = []\n";
        load(&format!(
            "[server]\ntls_cert = \"c\"\ntls_key = \"k\"\n{entries}[auth]\nenabled = true\n{rule}"
        ))
    };
    let clients = |entries: &str| {
        let settings = with(entries).unwrap();
        let shown = settings.redacted();
        let clients = settings.server.tls.unwrap().clients;
        let names = |entry: &ClientAuthority| {
            entry.trust_domains.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let shown = shown["server"]["client_authorities"].as_array().unwrap().clone();
        for (entry, shown) in clients.iter().zip(&shown) {
            assert_eq!(shown, &serde_json::json!({ "trust_domains": names(entry) }));
        }
        assert_eq!(shown.len(), clients.len());
        let file =
            |entry: &ClientAuthority| entry.ca.file_name().unwrap().to_str().unwrap().to_owned();
        let all = clients.iter().map(|entry| (file(entry), names(entry), entry.shared));
        all.collect::<Vec<_>>()
    };
    let entry = |ca: &str, names: &str| {
        format!("[[server.client_authorities]]\nca = \"{ca}\"\ntrust_domains = [{names}]\n")
    };
    let (acme, partner) =
        (entry("a.pem", "\"acme.example\""), entry("p.pem", "\"partner.example\", \"p\""));
    assert_eq!(
        clients(&format!("{acme}{partner}")),
        [
            ("a.pem".to_owned(), vec!["acme.example".to_owned()], true),
            ("p.pem".to_owned(), vec!["p".to_owned(), "partner.example".to_owned()], true),
        ]
    );
    // The short form without a list: what has a rule.
    let short = "client_ca = \"a.pem\"\n";
    let ruled = ("a.pem".to_owned(), vec!["acme.example".to_owned()], false);
    assert_eq!(clients(short), [ruled]);
    let listed = "client_trust_domains = [\"acme.example\", \"b\"]\n";
    let names = vec!["acme.example".to_owned(), "b".to_owned()];
    assert_eq!(clients(&format!("{short}{listed}")), [("a.pem".to_owned(), names, false)]);

    for (entries, problem) in [
        (format!("{short}{acme}"), "takes the place of `server.client_ca`"),
        (format!("{listed}{acme}"), "`server.client_trust_domains`: is of no use without"),
        (partner, "`server.client_authorities` does not list `acme.example`"),
        (format!("{acme}{}", entry("b", "")), "#2`: `trust_domains` must list"),
        (format!("{acme}{}", entry("", "\"b\"")), "#2`: `ca` must be a PEM file"),
        (format!("{acme}{}", entry("b", "\"B\"")), "#2`: `B` is no trust domain"),
        (format!("{acme}crl = \"b\"\n"), "server.client_authorities #1: crl"),
        ("[[server.client_authorities]]\nca = \"b\"\n".to_owned(), "`trust_domains` is missing"),
        ("[[server.client_authorities]]\ntrust_domains = [\"b\"]\n".to_owned(), "`ca` is missing"),
        ("client_authorities = [\"b\"]\n".to_owned(), "server.client_authorities #1`: expected"),
    ] {
        let error = with(&entries).unwrap_err().to_string();
        assert!(error.contains(problem), "{entries}: {error}");
    }
}

#[test]
fn se_46_a_misspelt_scope_of_a_certificate_is_no_scope_of_everything() {
    let error = load(
        "[server]\ntls_cert = \"c\"\ntls_key = \"k\"\nclient_ca = \"a\"\n[[auth.certificates]]\n\
         spiffe = \"spiffe://a/b\"\npermissions = [\"*\"]\nnamespace = [\"shop\"]\n",
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("did you mean `namespaces`?"), "{error}");
}
