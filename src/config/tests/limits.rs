//! How much of what there may be.

use super::*;

#[test]
fn ze_45_limits_are_off_by_default_and_each_class_may_have_its_own() {
    let rate = |per_second, burst| {
        let [per_second, burst] = [per_second, burst].map(|n| NonZeroU32::new(n).unwrap());
        Some(Rate { per_second, burst })
    };
    let default = load("").unwrap().limits;
    let failed_auth_per_minute = NonZeroU32::new(120);
    let failed_introspections_per_minute = NonZeroU32::new(600);
    let failures =
        Rates { failed_auth_per_minute, failed_introspections_per_minute, ..Rates::default() };
    assert_eq!(default.rates, failures);
    assert_eq!(default.trusted_proxies, []);

    let text = "[limits]\nrequests_per_second = 10\nburst = 30\nheavy_requests_per_second = 2\n\
                work_requests_per_second = 0\ncredentials_burst = 5\n\
                failed_auth_per_minute = 0\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]\n";
    let limits = load(text).unwrap().limits;
    assert_eq!(limits.rates.standard, rate(10, 30));
    assert_eq!(limits.rates.heavy, rate(2, 2));
    assert_eq!(limits.rates.work, None);
    assert_eq!(limits.rates.credentials, rate(10, 5));
    assert_eq!(limits.rates.failed_auth_per_minute, None);
    let proxies: Vec<String> = limits.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(proxies, ["10.0.0.0/8", "::1"]);

    let variables = [
        ("BAILIWICK__LIMITS__REQUESTS_PER_SECOND", "7"),
        ("BAILIWICK__LIMITS__HEAVY_REQUESTS_PER_SECOND", "3"),
        ("BAILIWICK__LIMITS__HEAVY_BURST", "9"),
    ];
    let settings = load_with("", &variables).unwrap();
    assert_eq!(settings.limits.rates.standard, rate(7, 7));
    assert_eq!(settings.limits.rates.heavy, rate(3, 9));
    let shown = settings.redacted();
    assert_eq!(shown["limits"]["requests_per_second"], 7);
    assert_eq!(shown["limits"]["heavy_burst"], 9);
    assert_eq!(shown["limits"]["failed_auth_per_minute"], 120);
    assert_eq!(shown["limits"]["failed_introspections_per_minute"], 600);
}

#[test]
fn se_64_what_egress_may_reach_is_read_and_shown() {
    assert!(load("").unwrap().limits.egress.allow.is_empty());
    let text = "[limits]\negress_allow = [\"10.1.0.0/16\", \"::1\"]\negress_ca_path = \"\"\n";
    let settings = load(text).unwrap();
    let shown = settings.redacted();
    assert_eq!(shown["limits"]["egress_allow"], serde_json::json!(["10.1.0.0/16", "::1"]));
    assert!(settings.limits.egress.ca.is_none());
    let said = problem("[limits]\negress_ca_path = \"no-such-file.pem\"\n");
    assert!(said.contains("limits.egress_ca_path") && said.contains("no-such-file.pem"), "{said}");
}

#[test]
fn wrong_limits_are_refused_by_name() {
    for (line, name) in [
        ("requests_per_second = 1000001", "limits.requests_per_second"),
        ("requests_per_second = -1", "limits.requests_per_second"),
        ("requests_per_second = 0.5", "limits.requests_per_second"),
        ("burst = 5", "limits.requests_per_second"),
        ("work_burst = 5", "limits.work_requests_per_second"),
        ("heavy_requests_per_second = \"many\"", "limits.heavy_requests_per_second"),
        ("trusted_proxies = [\"10.0.0.1/8\"]", "limits.trusted_proxies"),
        ("trusted_proxies = [\"proxy.example\"]", "limits.trusted_proxies"),
        ("egress_allow = [\"10.0.0.1/8\"]", "limits.egress_allow"),
        ("egress_allow = [\"redis.example\"]", "limits.egress_allow"),
    ] {
        let said = problem(&format!("[limits]\n{line}\n"));
        assert!(said.contains(name), "{line}: {said}");
    }
}
