//! Who is let in, and by what.

use super::*;

const ISSUER: &str = "[[auth.issuers]]\nissuer = \"https://b\"\naudience = \"x\"\n";

#[test]
fn tk_38_another_verification_method_stops_the_start() {
    assert!(problem("[auth]\njwt_verification_method = \"none\"").contains("neither"));
    assert!(load("[auth]\njwt_verification_method = \"public_key\"").is_ok());
}

#[test]
fn tk_34_the_life_of_generated_tokens_needs_no_other_setting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bailiwick.toml");
    let text = "[auth]\nenabled = true\njwt_public_key_path = \"absent.pem\"\n\
                jwt_token_expiry_hours = 2\n";
    fs::write(&path, text).unwrap();
    let hours = |path: Option<&Path>, environment: &[(&str, &str)]| {
        Settings::token_expiry(path, variables(environment)).map(|life| life.as_secs() / 3600)
    };
    assert_eq!(hours(None, &[]).unwrap(), 24);
    assert_eq!(hours(Some(&path), &[]).unwrap(), 2);
    let name = "BAILIWICK__AUTH__JWT_TOKEN_EXPIRY_HOURS";
    assert_eq!(hours(Some(&path), &[(name, "3")]).unwrap(), 3);
    let error = hours(None, &[(name, "0")]).unwrap_err();
    assert!(error.to_string().contains("jwt_token_expiry_hours"), "{error}");
}

#[test]
fn tk_35_the_path_of_the_key_wins_and_counts_from_the_files_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("keys")).unwrap();
    fs::write(folder.path().join("keys/a.pem"), "from the file").unwrap();
    fs::write(folder.path().join("keys/b.pem"), "from the variable").unwrap();
    let path = folder.path().join("bailiwick.toml");
    let text = "[auth]\nenabled = true\njwt_issuer = \"i\"\njwt_audience = \"a\"\n\
                jwt_public_key_path = \"keys/a.pem\"\njwt_public_key = \"inline\"\n\
                [storage]\nurl = \"sqlite:data/x.db\"\n";
    fs::write(&path, text).unwrap();
    let settings = Settings::load(Some(&path), variables(&[])).unwrap();
    let pem = |settings: &Settings| match &credentials(settings).issuers[0].keys {
        Keys::Pem { text, .. } => text.clone(),
        Keys::Jwks(_) => panic!("a key set"),
    };
    assert_eq!(pem(&settings), "from the file");
    assert_eq!(settings.storage, Storage::Sqlite(folder.path().join("data/x.db")));

    let short = [("BAILIWICK_JWT_PUBLIC_KEY_PATH", "keys/b.pem")];
    let settings = Settings::load(Some(&path), variables(&short)).unwrap();
    assert_eq!(pem(&settings), "from the variable");
    let absent = [("BAILIWICK_JWT_PUBLIC_KEY_PATH", "keys/absent.pem")];
    let error = Settings::load(Some(&path), variables(&absent)).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

#[test]
fn tk_31_tk_32_issuer_and_audience_are_required_with_a_jwt_key() {
    let key = "[auth]\nenabled = true\njwt_public_key = \"pem\"\n";
    assert!(problem(key).contains("auth.jwt_issuer"));
    assert!(problem(&format!("{key}jwt_issuer = \"i\"\n")).contains("auth.jwt_audience"));
    let empty = format!("{key}jwt_issuer = \"\"\njwt_audience = \"a\"\n");
    assert!(problem(&empty).contains("auth.jwt_issuer"));
    assert!(load(&format!("{key}jwt_issuer = \"i\"\njwt_audience = \"a\"\n")).is_ok());
}

#[test]
fn se_23_the_leeway_is_5_seconds_at_most() {
    assert!(load("[auth]\njwt_leeway_seconds = 5").is_ok());
    assert!(problem("[auth]\njwt_leeway_seconds = 6").contains("jwt_leeway_seconds"));
}

#[test]
fn only_bound_algorithms_can_be_allowed() {
    assert!(load("[auth]\njwt_allowed_algorithms = [\"RS256\", \"ES256\", \"EdDSA\"]").is_ok());
    for bad in ["[\"none\"]", "[\"HS256\"]", "[\"rs256\"]", "[]"] {
        let text = format!("[auth]\njwt_allowed_algorithms = {bad}");
        assert!(problem(&text).contains("jwt_allowed_algorithms"), "{bad}");
    }
}

#[test]
fn tk_46_keys_have_permissions_scope_and_a_subject() {
    let text = format!(
        "[auth]\nenabled = true\n{KEY}\n{}",
        "[[auth.api_keys]]\nkey = \"k2\"\npermissions = [\"*\"]\nnamespaces = [\"shop\", \"a.\"]\n\
         description = \"Ops\"\n"
    );
    let settings = load(&text).unwrap();
    let keys = &credentials(&settings).api_keys;
    assert_eq!(&*keys[0].subject, "api-key-1");
    assert_eq!(keys[0].scope, Scope::Everything);
    assert_eq!(keys[0].permissions.names(), ["tasks:read"]);
    assert_eq!(&*keys[1].subject, "Ops");
    assert_eq!(keys[1].scope.to_strings(), ["shop", "a."]);
}

#[test]
fn ze_45_a_key_may_have_a_limit_of_its_own() {
    let rate = |lines: &str| {
        let text = format!("[auth]\nenabled = true\n{KEY}{lines}\n");
        load(&text).map(|settings| credentials(&settings).api_keys[0].rate)
    };
    let limited = |per_second, burst| {
        let [per_second, burst] = [per_second, burst].map(|n| NonZeroU32::new(n).unwrap());
        OwnRate::Limited(Rate { per_second, burst })
    };
    assert_eq!(rate("").unwrap(), OwnRate::None);
    assert_eq!(rate("requests_per_second = 0").unwrap(), OwnRate::Unlimited);
    assert_eq!(rate("requests_per_second = 5").unwrap(), limited(5, 5));
    assert_eq!(rate("requests_per_second = 5\nburst = 9").unwrap(), limited(5, 9));
    for bad in ["burst = 9", "requests_per_second = 0\nburst = 9", "requests_per_second = 1000001"]
    {
        let problem = rate(bad).unwrap_err().to_string();
        assert!(problem.contains("auth.api_keys #1"), "{problem}");
        assert!(!problem.contains("secret"), "{problem}");
    }
}

#[test]
fn unused_credentials_are_disabled_only_where_that_is_said() {
    let days = |text: &str| load(text).map(|settings| settings.auth.disable_unused_after_days);
    assert_eq!(days("").unwrap(), None);
    assert_eq!(days("[auth]\ndisable_unused_after_days = 0").unwrap(), None);
    assert_eq!(days("[auth]\ndisable_unused_after_days = 90").unwrap(), NonZeroU32::new(90));
    let much = "[auth]\ndisable_unused_after_days = 36501";
    assert!(problem(much).contains("disable_unused_after_days"));
}

#[test]
fn tk_45_disabled_keys_do_not_count() {
    let text = format!("[auth]\nenabled = true\napi_keys_enabled = false\n{KEY}");
    assert!(credentials(&load(&text).unwrap()).api_keys.is_empty());
}

#[test]
fn se_06_odd_scopes_and_unknown_permissions_name_the_key_and_not_its_secret() {
    let entry = |lines: &str| format!("[[auth.api_keys]]\nkey = \"k1-secret-value\"\n{lines}\n");
    for lines in [
        "permissions = [\"tasks:raed\"]",
        "permissions = [\"tasks:*\"]\nnamespaces = [\"\"]",
        "permissions = [\"tasks:*\"]\nnamespaces = [\"deploy.*\"]",
        "permissions = [\"tasks:*\"]\nnamespaces = [\" shop\"]",
        "permissions = \"tasks:read\"",
        "description = \"no permissions\"",
        "permissions = []\ndescription = \"a\\nb\"",
    ] {
        let problem = problem(&format!("{KEY}{}", entry(lines).replace("k1-", "k2-")));
        assert!(problem.contains("api_keys"), "{problem}");
        assert!(!problem.contains("secret"), "{problem}");
    }
    let named = entry("permissions = [\"x:y\"]\ndescription = \"Monitoring\"");
    assert!(problem(&named).contains("#1 (Monitoring)"));
}

#[test]
fn two_entries_with_one_key_are_refused_without_showing_it() {
    let problem = problem(&format!("{KEY}{KEY}"));
    assert!(problem.contains("#2") && problem.contains("#1"), "{problem}");
    assert!(!problem.contains("secret"), "{problem}");
}

#[test]
fn se_14_keys_that_no_header_carries_are_refused() {
    for key in ["", "a b", "a,b", "\\u0007", "\u{e9}"] {
        let text = format!("[[auth.api_keys]]\nkey = \"{key}\"\npermissions = []\n");
        assert!(problem(&text).contains("visible ASCII"), "{key}");
    }
}

#[test]
fn se_21_documented_keys_open_nothing_beyond_loopback() {
    let key = |key: &str| {
        format!("[auth]\nenabled = true\n[[auth.api_keys]]\nkey = \"{key}\"\npermissions = []\n")
    };
    for documented in DOCUMENTED_KEYS {
        assert!(load(&key(documented)).is_ok());
        let remote = format!("[server]\nhttp_listen = \"0.0.0.0:1\"\n{}", key(documented));
        assert!(problem(&remote).contains("documentation"), "{documented}");
    }
    assert!(load(&format!("[server]\nhttp_listen = \"0.0.0.0:1\"\n{}", key("other"))).is_ok());
}

#[test]
fn se_42_se_03_foreign_permissions_stay_apart_from_the_vocabulary() {
    let extra = |name: &str| format!("[auth]\nextra_permissions = [\"{name}\"]");
    assert!(load(&extra("bundles:read")).is_ok());
    for bad in
        ["*", "bundles:*", "auth:read", "auth:x:read", "tasks:read", "tasks:fly", "bundles", ":a"]
    {
        assert!(problem(&extra(bad)).contains("extra_permissions"), "{bad}");
    }
    let key = "[[auth.api_keys]]\nkey = \"k\"\npermissions = [\"bundles:read\"]\n";
    assert!(load(&format!("{}\n{key}", extra("bundles:read"))).is_ok());
    assert!(load(key).is_err());
}

#[test]
fn tk_44_the_header_of_keys_cannot_have_another_meaning() {
    let header = |name: &str| format!("[auth]\nenabled = true\napi_key_header = \"{name}\"");
    let settings = load(&header("X-Team-Key")).unwrap();
    assert_eq!(credentials(&settings).api_key_header, "x-team-key");
    for bad in ["Authorization", "host", "grpc-timeout", "key-bin", "a b", "", "X-Request-Id"] {
        assert!(problem(&header(bad)).contains("api_key_header"), "{bad}");
    }
}

#[test]
fn tk_38_key_sets_need_https_an_issuer_and_an_audience() {
    let jwks = |lines: &str| {
        let auth = "[auth]\nenabled = true\njwt_verification_method = \"jwks\"\n";
        load(&format!("{auth}{lines}"))
    };
    let both = "jwt_issuer = \"https://idp\"\njwt_audience = \"a\"\n";
    let settings = jwks(both).unwrap();
    let Keys::Jwks(jwks_of) = &credentials(&settings).issuers[0].keys else { panic!("a PEM") };
    assert_eq!(jwks_of.url, None);
    for good in [
        "jwks_url = \"https://idp/keys\"\n",
        "jwks_url = \"http://10.0.0.1/keys\"\njwks_url_allow_http = true\n",
    ] {
        assert!(jwks(&format!("{both}{good}")).is_ok(), "{good}");
    }
    for (bad, key) in [
        ("jwks_url = \"http://localhost/keys\"\n", "plain http"),
        ("jwks_url = \"file:///keys\"\n", "auth.jwks_url"),
        ("jwks_url = \"https://a:b@idp/keys\"\n", "auth.jwks_url"),
        ("jwks_refresh_interval_seconds = 0\n", "jwks_refresh_interval_seconds"),
    ] {
        let said = jwks(&format!("{both}{bad}")).unwrap_err().to_string();
        assert!(said.contains(key), "{said}");
    }
    for (lines, key) in [
        ("jwt_audience = \"a\"\n", "auth.jwt_issuer"),
        ("jwt_issuer = \"https://idp\"\n", "auth.jwt_audience"),
        ("jwt_issuer = \"idp\"\njwt_audience = \"a\"\n", "auth.jwt_issuer"),
        ("jwt_issuer = \"http://idp\"\njwt_audience = \"a\"\n", "plain http"),
    ] {
        let said = jwks(lines).unwrap_err().to_string();
        assert!(said.contains(key), "{said}");
    }
    assert!(problem("[auth]\njwks_url = \"https://idp/keys\"").contains("auth.jwks_url"));
}

#[test]
fn se_02_issuers_rules_and_roles_are_checked_when_they_load() {
    let on = "[auth]\nenabled = true\n";
    assert!(problem(&format!("{on}{ISSUER}{ISSUER}")).contains("there twice"));
    for (line, says) in [
        ("jwks_uri = \"x\"\n", "did you mean `jwks_url`"),
        ("discovery = true\njwks_url = \"https://b/k\"\n", "give one of"),
        ("jwks_url = \"http://b/k\"\n", "plain http"),
        ("algorithms = [\"HS256\"]\n", "algorithms"),
        ("namespaces = [\"a.*\"]\n", "namespaces"),
        ("namespaces_ceiling = [\"\"]\n", "namespaces_ceiling"),
        ("permissions_ceiling = [\"tasks:fly\"]\n", "tasks:fly"),
        ("permissions_claim = \"sub\"\n", "permissions_claim"),
    ] {
        let said = problem(&format!("{on}{ISSUER}{line}"));
        assert!(said.contains(says) && said.contains("auth.issuers #1"), "{said}");
    }
    let rule = |lines: &str| {
        format!(
            "{on}{ISSUER}[[auth.claim_rules]]\npermissions = [\"role:own\"]\n{lines}\n\
                 [auth.roles.own]\npermissions = [\"tasks:read\"]\n"
        )
    };
    let good = "issuer = \"https://b\"\nclaims = { Repo = \"a/*\", \"k.io.x\" = \"y\" }";
    let settings = load(&rule(good)).unwrap();
    let names: Vec<&str> = credentials(&settings).issuers[0].rules[0]
        .claims
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["Repo", "k.io.x"]);
    for (lines, says) in [
        ("issuer = \"https://c\"\nclaims = { a = \"b\" }", "no issuer"),
        ("issuer = \"https://b\"\nclaims = {}", "empty"),
        ("issuer = \"https://b\"", "`claims` is missing"),
        ("issuer = \"https://b\"\nclaims = { a = \"b\" }\nnamespaces = [\"x{a}\"]", "x{a}"),
    ] {
        let said = problem(&rule(lines));
        assert!(said.contains(says), "{said}");
    }
    for (role, says) in [
        ("[auth.roles.superuser]\npermissions = []", "built in"),
        ("[auth.roles.Own]\npermissions = []", "a role's name"),
        ("[auth.roles.own]\npermissions = [\"tasks:fly\"]", "tasks:fly"),
        ("[auth.roles.own]\npermission = []", "permissions"),
        ("[[auth.api_keys]]\nkey = \"k\"\npermissions = [\"role:nobody\"]", "unknown role"),
    ] {
        assert!(problem(role).contains(says), "{}", problem(role));
    }
}

#[test]
fn the_token_file_is_named_with_its_store_or_not_at_all() {
    let store = |text: &str| load(text).unwrap().auth.token_store;
    assert_eq!(
        store("[auth]\ntoken_store = \"database\"\ntoken_file = \"\""),
        TokenStore::Database
    );
    let TokenStore::File(path) = store("[auth]\ntoken_store = \"file\"") else { panic!() };
    assert!(path.ends_with("auth.token"));
    let named = store("[auth]\ntoken_store = \"file\"\ntoken_file = \"/run/tokens\"");
    assert_eq!(named, TokenStore::File("/run/tokens".into()));
    assert!(problem("[auth]\ntoken_file = \"auth.token\"").contains("auth.token_store"));
    assert!(
        problem("[auth]\ntoken_store = \"file\"\ntoken_file = \"keys/\"")
            .contains("path of a file")
    );
    assert!(problem("[auth]\ntoken_store = \"memory\"").contains("neither"));
}
