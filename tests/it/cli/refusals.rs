//! What the command line says when a call does not come off.

use crate::{
    harness::{ROOT_KEY, Server, Setup, alone},
    tls,
};

#[tokio::test]
async fn a_fault_of_a_field_is_told_once() {
    let server = Server::start().await;
    let refused = server.run(&["auth", "mint-token", "--scope", "*"]).await;
    assert_eq!(refused.code, Some(1), "{refused}");
    assert_eq!(refused.err.matches("scopes").count(), 1, "{refused}");
    assert_eq!(refused.err.matches("cannot be minted").count(), 1, "{refused}");
}

#[tokio::test]
async fn parts_of_a_second_are_refused_where_seconds_are_meant() {
    for args in [
        &["auth", "rotate-token", "0k3v9x2m1q8z", "--overlap", "500ms"][..],
        &["auth", "tighten-token", "0k3v9x2m1q8z", "--since", "1500ms"],
        &["auth", "mint-token", "--scope", "tasks:list", "--expires-in", "1ms"],
        &["auth", "list-tokens", "--idle", "10ms"],
    ] {
        let refused = alone(args).await;
        assert_eq!(refused.code, Some(2), "{args:?}: {refused}");
        assert!(refused.err.contains("whole seconds"), "{args:?}: {refused}");
    }
}

#[tokio::test]
async fn ze_45_a_limit_says_when_to_try_again() {
    let rest = "[limits]\nrequests_per_second = 1\nburst = 1\n".to_owned();
    let server = Server::with(Setup { rest, ..Setup::default() }).await;
    let call = || server.run(&["auth", "whoami"]);
    let (a, b, c, d) = tokio::join!(call(), call(), call(), call());
    let ran = [a, b, c, d].into_iter().find(|ran| ran.code == Some(1)).expect("a call too many");
    assert!(ran.err.contains("RATE_LIMITED"), "{ran}");
    let (_, wait) = ran.err.split_once("try again in ").unwrap_or_else(|| panic!("{ran}"));
    let seconds: u64 = wait.split_once(" s").unwrap().0.parse().unwrap();
    assert_eq!(seconds, 1, "{ran}");
}

#[tokio::test]
async fn faults_of_tls_name_what_to_change() {
    let (certs, others) = (tls::generated(&[]).await, tls::generated(&[]).await);
    let server = tls::files(certs.path());
    let server = Server::with(Setup { server, ..Setup::default() }).await;
    let file = |folder: &tempfile::TempDir, name: &str| {
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let (ca, other_ca) = (file(&certs, "ca.pem"), file(&others, "ca.pem"));
    let (cert, other_key) = (file(&certs, "server.pem"), file(&others, "server-key.pem"));
    let (https, http) = (format!("https://{}", server.grpc), format!("http://{}", server.grpc));
    let call = async |args: &[&str]| {
        let own = ["auth", "whoami", "--api-key", ROOT_KEY];
        alone(&[&own[..], args].concat()).await
    };
    call(&["--url", &https, "--tls-ca", &ca]).await.good();

    let strange = call(&["--url", &https, "--tls-ca", &other_ca]).await;
    assert_eq!(strange.code, Some(3), "{strange}");
    assert!(strange.err.contains("--tls-ca"), "{strange}");
    assert!(!strange.err.contains("is the server running"), "{strange}");

    let misfit = ["--url", &https, "--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &other_key];
    let misfit = call(&misfit).await;
    assert_eq!(misfit.code, Some(2), "{misfit}");
    assert!(misfit.err.to_lowercase().contains("key"), "{misfit}");
    assert!(!misfit.err.contains("transport error"), "{misfit}");

    let plain = call(&["--url", &http]).await;
    assert_eq!(plain.code, Some(3), "{plain}");
    assert!(plain.err.contains("its url begins with https://"), "{plain}");

    let server = Server::start().await;
    let secured = call(&["--url", &format!("https://{}", server.grpc), "--tls-ca", &ca]).await;
    assert_eq!(secured.code, Some(3), "{secured}");
    assert!(secured.err.contains("its url begins with http://"), "{secured}");
}
