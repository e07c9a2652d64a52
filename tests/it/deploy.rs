//! Reads what stands in `deploy/` and runs it as it stands: the manifests
//! through kubernetes-validate, the unit through systemd-analyze, and the
//! commands of image, unit and probes in a sandbox around the real program.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use bailiwick::config::Settings;
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a program to its end; a program that is missing is a failure that
/// says how to get it.
fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; `make test` installs what the tests need")
    })
}

fn succeeds(command: &mut Command) -> String {
    let output = run(command);
    let said = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    said
}

/// The manifests by file name; the patch for HTTP probes is one of them.
fn manifests() -> Vec<(String, Value)> {
    let mut manifests: Vec<(String, Value)> = fs::read_dir(root().join("deploy/kubernetes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "kustomization.yaml")
        .map(|name| {
            let text = read(&format!("deploy/kubernetes/{name}"));
            let manifest = serde_saphyr::from_str(&text).unwrap();
            (name, manifest)
        })
        .collect();
    manifests.sort_by(|(a, _), (b, _)| a.cmp(b));
    manifests
}

fn manifest(name: &str) -> Value {
    manifests().into_iter().find(|(file, _)| file == name).expect(name).1
}

/// The instructions of the Dockerfile's last stage, in order.
struct Image(Vec<(String, String)>);

impl Image {
    fn read() -> Self {
        let text = read("deploy/Dockerfile");
        let text: String =
            text.lines().filter(|line| !line.starts_with('#')).fold(String::new(), |text, line| {
                match line.strip_suffix('\\') {
                    Some(part) => text + part,
                    None => text + line + "\n",
                }
            });
        let mut instructions = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let (word, rest) = line.trim().split_once(' ').unwrap();
            if word == "FROM" {
                instructions.clear();
            }
            instructions.push((word.to_owned(), rest.trim().to_owned()));
        }
        Self(instructions)
    }

    fn get(&self, word: &str) -> &str {
        let found = self.0.iter().rev().find(|(name, _)| name == word);
        &found.unwrap_or_else(|| panic!("no {word}")).1
    }

    fn list(&self, word: &str) -> Vec<String> {
        serde_json::from_str(self.get(word)).unwrap()
    }

    fn environment(&self) -> Vec<String> {
        self.get("ENV").split_whitespace().map(str::to_owned).collect()
    }

    fn health_command(&self) -> Vec<String> {
        let (_, command) = self.get("HEALTHCHECK").split_once(" CMD ").unwrap();
        serde_json::from_str(command).unwrap()
    }
}

/// The values of a key of the unit, in order.
fn unit(key: &str) -> Vec<String> {
    read("deploy/systemd/bailiwick.service")
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .map(str::to_owned)
        .collect()
}

/// A server in the sandbox, and how it is probed.
#[derive(Default)]
struct Sandbox {
    server: Vec<String>,
    environment: Vec<String>,
    config: String,
    /// Commands in the server's root.
    inside: Vec<Vec<String>>,
    /// Commands from without.
    outside: Vec<Vec<String>>,
}

fn quoted(words: &[String]) -> String {
    let words = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    words.collect::<Vec<_>>().join(" ")
}

impl Sandbox {
    /// Starts the server, runs every probe, checks that calls without a
    /// credential are refused, and stops it.
    fn run(&self) {
        let work = tempfile::tempdir().unwrap();
        let path = work.path();
        fs::create_dir_all(path.join("etc/keys")).unwrap();
        fs::create_dir(path.join("data")).unwrap();
        fs::create_dir(path.join("keys")).unwrap();
        fs::write(path.join("etc/bailiwick.toml"), &self.config).unwrap();
        public_key(&path.join("etc/keys/jwt-public-key.pem"));
        fs::write(path.join("commands"), self.commands()).unwrap();
        let said = succeeds(
            Command::new(root().join("tests/it/deploy/sandbox.sh"))
                .arg(path)
                .arg(env!("CARGO_BIN_EXE_bailiwick")),
        );
        let passed = said.matches("sandbox: passed: ").count();
        assert_eq!(passed, self.inside.len() + self.outside.len(), "{said}");
        assert!(said.contains("sandbox: stopped cleanly"), "{said}");
    }

    fn commands(&self) -> String {
        let lines = |commands: &[Vec<String>]| {
            let lines: Vec<String> = commands.iter().map(|command| quoted(command)).collect();
            quoted(&lines)
        };
        let mut text = String::new();
        writeln!(text, "environment=({})", quoted(&self.environment)).unwrap();
        writeln!(text, "server=({})", quoted(&self.server)).unwrap();
        writeln!(text, "inside=({})", lines(&self.inside)).unwrap();
        writeln!(text, "outside=({})", lines(&self.outside)).unwrap();
        writeln!(text, "http_port=8080").unwrap();
        text
    }
}

/// Writes a new public key as `auth generate-keys` would.
fn public_key(to: &Path) {
    let private = to.with_file_name("private.pem");
    succeeds(
        Command::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(&private),
    );
    succeeds(
        Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&private).arg("-out").arg(to),
    );
    fs::remove_file(private).unwrap();
}

/// The command that does what the kubelet does for a probe.
fn kubelet(probe: &Value) -> Vec<String> {
    let words: Vec<String> = if let Some(grpc) = probe.get("grpc").filter(|grpc| !grpc.is_null()) {
        vec![
            "grpc-health-probe".to_owned(),
            format!("-addr=127.0.0.1:{}", grpc["port"].as_u64().unwrap()),
            format!("-service={}", grpc["service"].as_str().unwrap()),
        ]
    } else {
        let get = &probe["httpGet"];
        let port = get["port"].as_u64().unwrap();
        let path = get["path"].as_str().unwrap();
        ["curl", "--fail", "--silent", "--show-error", &format!("http://127.0.0.1:{port}{path}")]
            .map(str::to_owned)
            .to_vec()
    };
    words
}

fn container(manifest: &Value) -> &Value {
    &manifest["spec"]["template"]["spec"]["containers"][0]
}

const PROBES: [&str; 3] = ["startupProbe", "livenessProbe", "readinessProbe"];

#[test]
fn the_manifests_are_valid_and_all_listed() {
    let folder = root().join("deploy/kubernetes");
    let list: Value =
        serde_saphyr::from_str(&read("deploy/kubernetes/kustomization.yaml")).unwrap();
    let mut listed: Vec<&str> =
        list["resources"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    listed.push("probes-http.yaml");
    listed.sort_unstable();
    let files: Vec<String> = manifests().into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed, files);
    for name in &files {
        let said =
            succeeds(Command::new("kubernetes-validate").arg("--strict").arg(folder.join(name)));
        assert!(said.contains("passed for resource"), "{name}: {said}");
    }
}

#[test]
fn kubernetes_validate_finds_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    let text = read("deploy/kubernetes/statefulset.yaml");
    let bad = text.replace("readOnlyRootFilesystem", "readonlyRootFilesystem");
    assert_ne!(bad, text);
    let file = folder.path().join("bad.yaml");
    fs::write(&file, bad).unwrap();
    let output = run(Command::new("kubernetes-validate").arg("--strict").arg(&file));
    assert!(!output.status.success());
}

#[test]
fn the_pod_has_no_privileges_and_no_token() {
    let set = manifest("statefulset.yaml");
    let pod = &set["spec"]["template"]["spec"];
    let container = container(&set);
    assert_eq!(set["spec"]["replicas"], 1);
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(manifest("serviceaccount.yaml")["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
    let user = Image::read().get("USER").to_owned();
    assert_eq!(user, "65532:65532");
    assert_eq!(pod["securityContext"]["runAsUser"], 65532);
}

#[test]
fn every_configuration_in_deploy_turns_auth_on() {
    let file: toml::Value = toml::from_str(&read("deploy/bailiwick.toml")).unwrap();
    let map = manifest("configmap.yaml");
    let pod: toml::Value = toml::from_str(map["data"]["bailiwick.toml"].as_str().unwrap()).unwrap();
    assert_eq!(file["auth"]["enabled"].as_bool(), Some(true));
    assert_eq!(file, pod, "deploy/bailiwick.toml and configmap.yaml differ");
}

#[test]
fn the_configuration_shows_jobs_and_the_line_protocol() {
    let text = read("deploy/bailiwick.toml");
    let (before, table) = text.split_once("# [controller]\n").unwrap();
    let (table, after) = table.split_once("\n\n").unwrap();
    // What is a setting is one once its mark is taken off; all else is prose.
    let table = table.lines().map(|line| match line.strip_prefix("# ") {
        Some(setting) if setting.contains(" = ") => setting,
        _ => line,
    });
    let table = table.collect::<Vec<_>>().join("\n");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("keys")).unwrap();
    public_key(&at("keys/jwt-public-key.pem"));
    let tokens = "[token.deploy]\nsecret = \"a-secret-of-a-client\"\nnamespace = \"deploy.\"\n";
    fs::write(at("auth.toml"), tokens).unwrap();
    fs::set_permissions(at("auth.toml"), Permissions::from_mode(0o600)).unwrap();
    fs::write(at("bailiwick.toml"), format!("{before}[controller]\n{table}\n\n{after}")).unwrap();
    let none = std::iter::empty::<(OsString, OsString)>();
    let settings = Settings::load(Some(&at("bailiwick.toml")), none).unwrap();
    let controller = settings.controller.unwrap();
    assert_eq!(controller.listen.to_string(), "127.0.0.1:5678");
    assert!(controller.tls.is_some());
    assert_eq!(controller.tokens.unwrap().len(), 1);
    // Beside it stand the defaults, to be seen.
    let runners: Vec<&str> = settings.scheduler.runners.iter().map(|kind| kind.as_str()).collect();
    assert_eq!((runners, settings.scheduler.max_concurrent_runs), (vec!["task", "http"], 64));
}

#[test]
fn the_image_and_the_pod_are_the_same_server() {
    let image = Image::read();
    let set = manifest("statefulset.yaml");
    let container = container(&set);
    let args: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
    assert_eq!(args, image.list("CMD"));
    assert_eq!(environment(container), image.environment());
    let volume = image.list("VOLUME");
    for (place, volume) in volume.iter().enumerate() {
        assert_eq!(container["volumeMounts"][place]["mountPath"].as_str(), Some(volume.as_str()));
    }
    let exposed: Vec<u64> =
        image.get("EXPOSE").split(' ').map(|port| port.parse().unwrap()).collect();
    let ports = container["ports"].as_array().unwrap();
    let ports: Vec<u64> =
        ports.iter().map(|port| port["containerPort"].as_u64().unwrap()).collect();
    assert_eq!(exposed, ports);
}

fn environment(container: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = container["env"].as_array().unwrap().iter();
    pairs.map(|pair| format!("{}={}", text(&pair["name"]), text(&pair["value"]))).collect()
}

#[test]
fn the_image_serves_and_its_health_check_passes() {
    let image = Image::read();
    Sandbox {
        server: [image.list("ENTRYPOINT"), image.list("CMD")].concat(),
        environment: image.environment(),
        config: read("deploy/bailiwick.toml"),
        inside: vec![image.health_command()],
        outside: Vec::new(),
    }
    .run();
}

#[test]
fn the_pod_serves_and_its_probes_pass() {
    let set = manifest("statefulset.yaml");
    let http = manifest("probes-http.yaml");
    let map = manifest("configmap.yaml");
    let container_ = container(&set);
    let args: Vec<String> = serde_json::from_value(container_["args"].clone()).unwrap();
    for (probe, service) in PROBES.iter().zip(["startup", "liveness", "readiness"]) {
        assert_eq!(container_[probe]["grpc"]["service"], service);
    }
    let probes = PROBES.iter().map(|probe| kubelet(&container_[probe]));
    let http_probes = PROBES.iter().map(|probe| kubelet(&container(&http)[probe]));
    Sandbox {
        server: [Image::read().list("ENTRYPOINT"), args].concat(),
        environment: environment(container_),
        config: map["data"]["bailiwick.toml"].as_str().unwrap().to_owned(),
        inside: Vec::new(),
        outside: probes.chain(http_probes).collect(),
    }
    .run();
}

#[test]
fn the_unit_is_valid_and_hardened() {
    let folder = tempfile::tempdir().unwrap();
    let units = folder.path().join("usr/lib/systemd/system");
    fs::create_dir_all(&units).unwrap();
    succeeds(Command::new("cp").arg("-r").arg("/usr/lib/systemd/system/.").arg(&units));
    let binary = folder.path().join("usr/bin/bailiwick");
    fs::create_dir_all(binary.parent().unwrap()).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_bailiwick"), &binary).unwrap();
    let unit = root().join("deploy/systemd/bailiwick.service");
    fs::copy(&unit, units.join("bailiwick.service")).unwrap();
    let said = succeeds(
        Command::new("systemd-analyze")
            .arg("verify")
            .arg(format!("--root={}", folder.path().display()))
            .arg("bailiwick.service"),
    );
    assert_eq!(said, "", "systemd-analyze verify has something to say");
    // Exposure at most 1.5 of 10.
    succeeds(
        Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--threshold=15", "--no-pager"])
            .arg(unit),
    );
}

#[test]
fn the_unit_serves() {
    let command = unit("ExecStart");
    assert_eq!(command.len(), 1);
    assert_eq!(unit("StateDirectory"), ["bailiwick bailiwick-keys"]);
    assert_eq!(unit("ProtectSystem"), ["strict"]);
    Sandbox {
        server: command[0].split_whitespace().map(str::to_owned).collect(),
        environment: Vec::new(),
        config: read("deploy/bailiwick.toml"),
        inside: vec![vec!["bailiwick".to_owned(), "health".to_owned()]],
        outside: Vec::new(),
    }
    .run();
}
