//! What steps may get, and the key of keys.

use super::*;

#[test]
fn what_steps_may_get_is_checked() {
    let of = |more: &str| format!("[[auth.namespaces]]\nprefix = \"shop\"\n{more}\n");
    let good = "ceiling = [\"tasks:*\"]\naudiences = {vault = \"https://v.example\"}";
    let url = "[server]\npublic_url = \"http://127.0.0.1:8080/\"\n";
    let settings = load(&format!("{url}{}", of(good))).unwrap();
    let rights = &settings.step_tokens.rights;
    let shop = crate::domain::Namespace::parse("shop.eu").unwrap();
    assert_eq!(rights.issuer().map(|issuer| &**issuer), Some("http://127.0.0.1:8080"));
    assert_eq!(rights.audience(&shop, "vault").map(|url| &**url), Some("https://v.example"));
    assert!(rights.ceiling(&shop).contains(crate::domain::Permission::TasksCreate));
    for (text, says) in [
        (of("ceiling = [\"task:*\"]"), "unknown permission"),
        (of("audiences = {Vault = \"x\"}"), "is not a short name"),
        (of("audiences = {bailiwick = \"x\"}"), "is not a short name"),
        (of("audiences = {v = \"a b\"}"), "visible ASCII"),
        (format!("{url}{}", of("audiences = {v = \"http://127.0.0.1:8080\"}")), "public_url"),
        (format!("{}{}", of(""), of("")), "stands twice"),
        (of("audience = {}"), "did you mean `audiences`"),
        ("[[auth.namespaces]]\nceiling = []".to_owned(), "`prefix` is missing"),
    ] {
        assert!(problem(&text).contains(says), "{text}: {}", problem(&text));
    }
}

#[test]
fn se_32_no_issuer_of_jwts_has_our_own_name() {
    let text = "[server]\npublic_url = \"https://b.example\"\n[auth]\nenabled = true\n\
                jwt_issuer = \"https://b.example\"\njwt_audience = \"a\"\njwt_public_key = \"pem\"\n";
    assert!(problem(text).contains("server.public_url"), "{}", problem(text));
    assert!(load(&text.replace("https://b.example\"\njwt_a", "other\"\njwt_a")).is_ok());
}

#[test]
fn se_48_where_the_key_of_keys_comes_from() {
    const NAME: &str = "BAILIWICK_KEY_ENCRYPTION_KEY";
    let key = |text, value| load_with(text, &[(NAME, value)]);
    let hex = "5a".repeat(32);
    let given = key("", &hex).unwrap();
    assert!(matches!(&given.step_tokens.key, KeySource::Given(key) if **key == [0x5a; 32]));
    assert!(!format!("{given:?}").contains("5a5a") && !format!("{given:?}").contains("90, 90"));
    let error = key("", "5a").unwrap_err().to_string();
    assert!(error.contains(NAME) && error.contains("64 hex digits"), "{error}");
    let file = "[auth]\nkey_encryption_key_file = \"elsewhere/k\"\n";
    assert!(key(file, &hex).unwrap_err().to_string().contains("use one of them"));
    let KeySource::File(path) = load(file).unwrap().step_tokens.key else { panic!("a file") };
    assert!(path.ends_with("elsewhere/k"), "{}", path.display());
    let KeySource::File(path) = load("").unwrap().step_tokens.key else { panic!("a file") };
    assert!(path.ends_with("keys/master.key"), "{}", path.display());
    let within = "[auth]\nkey_encryption_key_file = \"bailiwick-data/k\"\n";
    assert!(problem(within).contains("within the data folder"), "{}", problem(within));
    let beside = load("[storage]\nurl = \"sqlite:b.db\"\n").unwrap();
    assert!(matches!(beside.step_tokens.key, KeySource::Within(_)));
}
