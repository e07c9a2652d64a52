//! `bailiwick auth …`: keys and tokens are made here, without a server;
//! `whoami`, `can-i` and their like ask one.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::{
    Connection, Error, Format, Result, access, api_keys, certs, credentials, elevation, introspect,
    output, replay, scan, signing_keys, view,
};
use crate::{
    authn::{
        PublicKey,
        tokens::{self, Claims, Expectations, KeyKind},
    },
    config::{self, Roles, Settings},
    domain::{Clock as _, Permission, PermissionSet, Scope},
    pb::v1 as pb,
    server::SystemClock,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the whole vocabulary of permissions, and the roles
    #[command(
        after_help = "Examples:\n  bailiwick auth show-permissions\n  bailiwick auth show-permissions --format json\n  bailiwick -c bailiwick.toml auth show-permissions"
    )]
    ShowPermissions,
    /// Make a pair of keys for signing and checking JWTs
    #[command(
        after_help = "Examples:\n  bailiwick auth generate-keys --output-dir ./keys\n  bailiwick auth generate-keys --algorithm EdDSA --force"
    )]
    GenerateKeys(GenerateKeys),
    /// Make certificates to try TLS with: an authority, a server's, clients'
    #[command(
        after_help = "Examples:\n  bailiwick auth generate-certs\n  bailiwick auth generate-certs --host bailiwick.internal --spiffe spiffe://shop.example/worker"
    )]
    GenerateCerts(certs::GenerateCerts),
    /// Print a JWT signed with a private key, and nothing else
    #[command(
        after_help = "Examples:\n  bailiwick auth generate-token --permissions tasks:create,tasks:read --subject ci \\\n      --private-key keys/jwt-private-key.pem --namespaces shop --expiry-hours 1"
    )]
    GenerateToken(GenerateToken),
    /// Check a JWT and print its claims and every fault
    #[command(
        after_help = "The token is what --token, --token-file or BAILIWICK_AUTH_TOKEN says.\n\nExamples:\n  bailiwick auth validate-token --token \"$TOKEN\" --public-key keys/jwt-public-key.pem\n  bailiwick auth validate-token --token-file token --public-key keys/jwt-public-key.pem --issuer bailiwick"
    )]
    ValidateToken(ValidateToken),
    /// Mint a token and print it, once; needs root
    #[command(
        after_help = "Examples:\n  bailiwick auth mint-token --scope tasks:create,tasks:read --name ci\n  bailiwick auth mint-token --scope work:lease --namespaces shop. --expires-in 24h"
    )]
    MintToken(credentials::Mint),
    /// List tokens and configured keys, never a secret; needs root
    #[command(
        after_help = "Examples:\n  bailiwick auth list-tokens\n  bailiwick auth list-tokens --idle 30d\n  bailiwick auth list-tokens --unused --format json"
    )]
    ListTokens(credentials::List),
    /// Show one token, or all, never a secret; needs root
    #[command(after_help = "Examples:\n  bailiwick auth show\n  bailiwick auth show 0k3v9x2m1q8z")]
    Show {
        /// The token's prefix; all without it
        prefix: Option<String>,
    },
    /// Take a token back; its next call fails; needs root
    #[command(
        after_help = "Examples:\n  bailiwick auth revoke-token 0k3v9x2m1q8z\n  bailiwick auth revoke-token 0k3v9x2m1q8z --cascade"
    )]
    RevokeToken {
        /// The token's prefix, whole
        prefix: String,
        /// Also tokens that descend from it and keys that it made
        #[arg(long)]
        cascade: bool,
    },
    /// Mint the successor of a token and print it, once; needs root
    #[command(
        after_help = "Examples:\n  bailiwick auth rotate-token 0k3v9x2m1q8z\n  bailiwick auth rotate-token 0k3v9x2m1q8z --overlap 10m"
    )]
    RotateToken {
        /// The token's prefix, whole
        prefix: String,
        /// For how long the old one still counts, as 10m
        #[arg(long, value_name = "DURATION", value_parser = super::duration::seconds)]
        overlap: Option<u32>,
    },
    /// Mint the successor of a token with only the permissions that were used,
    /// and print it, once; needs root
    #[command(
        after_help = "Examples:\n  bailiwick auth tighten-token 0k3v9x2m1q8z --dry-run\n  bailiwick auth tighten-token 0k3v9x2m1q8z --since 30d --overlap 1h"
    )]
    TightenToken(credentials::Tighten),
    /// Take back the JWTs of a subject that were issued until now; needs root
    #[command(
        after_help = "Examples:\n  bailiwick auth revoke-subject --issuer bailiwick --subject ci\n  bailiwick auth revoke-subject --issuer https://idp.example"
    )]
    RevokeSubject {
        /// The issuer, as the tokens name it
        #[arg(long)]
        issuer: String,
        /// The subject; every one of the issuer without it
        #[arg(long)]
        subject: Option<String>,
        /// Also the credentials that they made, and theirs
        #[arg(long)]
        cascade: bool,
    },
    /// API keys: create, list, get, revoke, delete
    #[command(subcommand)]
    ApiKey(api_keys::Command),
    /// Keys that sign step tokens
    #[command(subcommand)]
    SigningKeys(signing_keys::Command),
    /// Find leaked secrets in files, in git history and on standard input
    #[command(after_help = scan::HELP)]
    Scan(scan::Scan),
    /// Show who a server takes you for
    #[command(
        after_help = "Examples:\n  bailiwick auth whoami\n  bailiwick auth whoami --token-file token --format json"
    )]
    Whoami,
    /// Ask whether you may do something; exit 1 when not
    #[command(
        after_help = "Examples:\n  bailiwick auth can-i tasks:create shop\n  bailiwick auth can-i tasks:create steps:read --namespace shop\n  bailiwick auth can-i tasks:create shop --as config:deploy"
    )]
    CanI {
        /// The permissions, and behind them a namespace; anywhere without one
        #[arg(required = true, value_name = "PERMISSION… [NAMESPACE]")]
        permissions: Vec<String>,
        /// In this namespace
        #[arg(long)]
        namespace: Option<String>,
        /// Whether somebody else may, as `config:SUBJECT`, `idp:ISSUER#SUBJECT` or
        /// a credential's id; needs audit:read
        #[arg(long = "as", value_name = "SUBJECT")]
        as_subject: Option<String>,
    },
    /// List who could do something; needs audit:read there
    #[command(
        after_help = "Examples:\n  bailiwick auth who-can tasks:create shop\n  bailiwick auth who-can api_keys:admin shop. --format json"
    )]
    WhoCan {
        /// The permission
        permission: String,
        /// The namespace; with a dot behind it all below it
        namespace: String,
    },
    /// Try a changed configuration on the decisions of the audit
    #[command(after_help = replay::EXAMPLES)]
    Replay(replay::Window),
    /// Explain a decision: the rule, what the caller had, what would help
    #[command(
        after_help = "Every error says its request id, and so does the header X-Request-Id of every reply.\nDecisions of others need audit:read.\n\nExamples:\n  bailiwick auth why-denied 1f0c8a52-7d0e-4a3b-9c1e-5b6a7d8e9f00\n  bailiwick auth why-denied 1f0c8a52-7d0e-4a3b-9c1e-5b6a7d8e9f00 --format json"
    )]
    WhyDenied {
        /// The id of the call
        #[arg(value_name = "REQUEST_ID")]
        request_id: String,
    },
    /// Say what a credential is worth; exit 1 when it does not count; needs
    /// tokens:introspect everywhere
    #[command(
        after_help = "The credential is read from a file or from standard input, never from an argument;\n--token-file and its like are for your own.\n\nExamples:\n  bailiwick auth introspect --credential-file shown\n  pass show shop/ci | bailiwick auth introspect --format json"
    )]
    Introspect(introspect::Shown),
    /// Ask whether a credential may do something; exit 1 when not; needs
    /// tokens:introspect everywhere
    #[command(
        after_help = "The credential is read from a file or from standard input, never from an argument;\n--token-file and its like are for your own.\n\nExamples:\n  bailiwick auth check tasks:create shop --credential-file shown\n  pass show shop/ci | bailiwick auth check bundles:read bundles:write shop"
    )]
    Check(introspect::Check),
    /// Trade your credential for a token that holds less and ends sooner, and
    /// print it, once
    #[command(
        after_help = "It ends with the credential that it came from.\n\nExamples:\n  bailiwick auth exchange --scope tasks:read --namespaces shop --expires-in 5m\n  bailiwick auth exchange --scope tasks:create,tasks:read --format json"
    )]
    Exchange(introspect::Exchange),
    /// Ask for more rights for a while, and print the request's id
    #[command(
        after_help = "They hold once somebody else approves, for all calls of yours, and end by themselves.\n\nExamples:\n  bailiwick auth elevate steps:resolve shop --for 30m --reason 'orders are stuck'\n  bailiwick auth elevate tasks:read steps:read shop. --for 1h --reason 'INC-1042'"
    )]
    Elevate(elevation::Elevate),
    /// Approve somebody else's request for more rights
    #[command(
        after_help = "Somebody else who holds all of it in the whole namespace may.\n\nExamples:\n  bailiwick auth elevations --state pending\n  bailiwick auth approve 9f3c1a7be2045d68"
    )]
    Approve {
        /// The request's id
        id: String,
    },
    /// Refuse somebody else's request for more rights
    #[command(after_help = "Examples:\n  bailiwick auth deny 9f3c1a7be2045d68")]
    Deny {
        /// The request's id
        id: String,
    },
    /// End more rights at once, or take a request back
    #[command(after_help = "Examples:\n  bailiwick auth revoke-elevation 9f3c1a7be2045d68")]
    RevokeElevation {
        /// The request's id
        id: String,
    },
    /// List requests for more rights: yours, and those you could decide about
    #[command(
        after_help = "Examples:\n  bailiwick auth elevations\n  bailiwick auth elevations --state active --format json"
    )]
    Elevations(elevation::List),
}

#[derive(Args, Debug)]
pub(super) struct GenerateKeys {
    /// Where the files go
    #[arg(long, default_value = "./keys", value_name = "FOLDER")]
    output_dir: PathBuf,
    /// Bits of an RSA key
    #[arg(long, default_value_t = 2048, value_name = "BITS")]
    key_size: u32,
    /// The signature's algorithm
    #[arg(long, value_enum, default_value_t = Algorithm::Rs256)]
    algorithm: Algorithm,
    /// Overwrite keys that are there
    #[arg(long)]
    force: bool,
}

/// The algorithms of JWTs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Algorithm {
    /// RSA with SHA-256.
    #[value(name = "RS256")]
    Rs256,
    /// ECDSA over P-256.
    #[value(name = "ES256")]
    Es256,
    /// Ed25519.
    #[value(name = "EdDSA")]
    EdDsa,
}

#[derive(Args, Debug)]
pub(super) struct GenerateToken {
    /// The permissions, and roles as role:NAME, separated by commas
    #[arg(long, required = true, value_delimiter = ',', value_name = "LIST")]
    permissions: Vec<String>,
    /// The subject
    #[arg(long)]
    subject: String,
    /// The file with the private key
    #[arg(long, value_name = "FILE")]
    private_key: PathBuf,
    /// How long it lives [default: `auth.jwt_token_expiry_hours` of the
    /// configuration, or else 24]
    #[arg(long, value_name = "HOURS", value_parser = clap::value_parser!(u32).range(1..=8760))]
    expiry_hours: Option<u32>,
    /// The issuer
    #[arg(long, default_value = "bailiwick")]
    issuer: String,
    /// The audience
    #[arg(long, default_value = "bailiwick-api")]
    audience: String,
    /// Where the permissions hold, separated by commas; without it the
    /// server's configuration decides
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    namespaces: Option<Vec<String>>,
    /// Narrows a worker's calls further, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    worker_namespaces: Vec<String>,
    /// Also take permissions that are not in the vocabulary
    #[arg(long)]
    allow_unknown: bool,
}

#[derive(Args, Debug)]
pub(super) struct ValidateToken {
    /// The file with the public key
    #[arg(long, value_name = "FILE")]
    public_key: PathBuf,
    /// What the issuer must be
    #[arg(long)]
    issuer: Option<String>,
    /// What the audience must be or contain
    #[arg(long)]
    audience: Option<String>,
}

pub(super) async fn run(
    command: Command,
    config: Option<&Path>,
    connection: &Connection,
    format: Format,
) -> Result {
    match command {
        Command::ShowPermissions => show_permissions(config, format),
        Command::GenerateKeys(args) => generate_keys(&args),
        Command::GenerateCerts(args) => certs::generate(&args),
        Command::GenerateToken(args) => generate_token(args, config),
        Command::ValidateToken(args) => validate_token(args, config, connection, format),
        Command::MintToken(args) => credentials::mint(args, connection, format).await,
        Command::ListTokens(args) => credentials::list(&args, connection, format).await,
        Command::Show { prefix: None } => {
            credentials::list(&credentials::List::default(), connection, format).await
        }
        Command::Show { prefix: Some(prefix) } => {
            credentials::get(prefix, connection, format).await
        }
        Command::RevokeToken { prefix, cascade } => {
            credentials::revoke(prefix, cascade, connection, format).await
        }
        Command::RotateToken { prefix, overlap } => {
            credentials::rotate(prefix, overlap, connection, format).await
        }
        Command::TightenToken(args) => credentials::tighten(args, connection, format).await,
        Command::RevokeSubject { issuer, subject, cascade } => {
            credentials::revoke_subject(issuer, subject, cascade, connection, format).await
        }
        Command::ApiKey(command) => api_keys::run(command, connection, format).await,
        Command::SigningKeys(command) => signing_keys::run(command, connection, format).await,
        Command::Scan(args) => Box::pin(scan::run(args, connection, format)).await,
        Command::Whoami => whoami(connection, format).await,
        Command::CanI { permissions, namespace, as_subject } => {
            access::can_i(permissions, namespace, as_subject, connection, format).await
        }
        Command::WhoCan { permission, namespace } => {
            access::who_can(permission, namespace, connection, format).await
        }
        Command::Replay(window) => replay::run(window, config, connection, format).await,
        Command::WhyDenied { request_id } => {
            access::why_denied(request_id, connection, format).await
        }
        Command::Introspect(shown) => introspect::introspect(shown, connection, format).await,
        Command::Check(args) => introspect::check(args, connection, format).await,
        Command::Exchange(args) => introspect::exchange(args, connection, format).await,
        Command::Elevate(args) => elevation::elevate(args, connection, format).await,
        Command::Approve { id } => elevation::approve(id, connection, format).await,
        Command::Deny { id } => elevation::deny(id, connection, format).await,
        Command::RevokeElevation { id } => elevation::revoke(id, connection, format).await,
        Command::Elevations(args) => elevation::list(args, connection, format).await,
    }
}

#[derive(Serialize)]
struct ShownPermission {
    name: &'static str,
    description: &'static str,
}

#[derive(Serialize)]
struct ShownRole {
    name: String,
    permissions: Vec<String>,
}

/// The permissions of other services and the roles: of the configuration when
/// there is one, or else none and those that are built in.
fn vocabulary(config: Option<&Path>) -> Result<(BTreeSet<Arc<str>>, Roles)> {
    match config {
        None => Ok((BTreeSet::new(), Roles::default())),
        Some(_) => {
            Settings::vocabulary(config, std::env::vars_os()).map_err(|error| refused(&error))
        }
    }
}

fn refused(error: &config::Error) -> Error {
    Error::Usage(format!("the configuration is refused: {error}"))
}

fn show_permissions(config: Option<&Path>, format: Format) -> Result {
    let shown = |permission: &Permission| ShownPermission {
        name: permission.name(),
        description: permission.description(),
    };
    let all: Vec<ShownPermission> = Permission::ALL.iter().map(shown).collect();
    let (_, roles) = vocabulary(config)?;
    let role = |(name, set): (&str, &PermissionSet)| ShownRole {
        name: format!("role:{name}"),
        permissions: set.names(),
    };
    let roles: Vec<ShownRole> = roles.iter().map(role).collect();
    if format == Format::Json {
        return output::json(&serde_json::json!({ "permissions": all, "roles": roles }));
    }
    let mut rows: Vec<Vec<String>> = all
        .iter()
        .map(|permission| vec![permission.name.to_owned(), permission.description.to_owned()])
        .collect();
    rows.push(vec!["RESOURCE:*".to_owned(), "Everything of one resource, as tasks:*.".to_owned()]);
    rows.push(vec!["*".to_owned(), "Everything but what only root may do.".to_owned()]);
    output::table(&["PERMISSION", "ALLOWS"], &rows)?;
    let rows: Vec<Vec<String>> =
        roles.into_iter().map(|role| vec![role.name, role.permissions.join(", ")]).collect();
    output::line("")?;
    output::table(&["ROLE", "PERMISSIONS"], &rows)
}

fn wrong(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::Usage(format!("{}: {error}", path.display()))
}

fn generate_keys(args: &GenerateKeys) -> Result {
    let kind = match args.algorithm {
        Algorithm::Rs256 => KeyKind::Rsa(args.key_size),
        Algorithm::Es256 => KeyKind::P256,
        Algorithm::EdDsa => KeyKind::Ed25519,
    };
    let private = args.output_dir.join("jwt-private-key.pem");
    let public = args.output_dir.join("jwt-public-key.pem");
    for path in [&private, &public] {
        if path.exists() && !args.force {
            return Err(Error::Failed(format!(
                "{} is there already; --force overwrites it, and tokens signed with it end",
                path.display()
            )));
        }
    }
    let pair = tokens::generate(kind).map_err(|error| Error::Usage(error.to_string()))?;
    write_keys(&args.output_dir, &pair)?;
    output::line(format!("{}\n{}", private.display(), public.display()))
}

/// Writes a pair of keys; the private one is 0600 from its first byte.
pub(super) fn write_keys(folder: &Path, pair: &tokens::KeyPairPem) -> Result {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| wrong(folder, error))?;
    write_new(&folder.join("jwt-private-key.pem"), &pair.private, 0o600)?;
    write_new(&folder.join("jwt-public-key.pem"), &pair.public, 0o644)
}

/// Writes a file with a mode, through a new file beside it: nobody ever sees
/// half of it, or all of it with a wider mode.
pub(super) fn write_new(path: &Path, text: &str, mode: u32) -> Result {
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(|error| {
        // What is left of it must not stay; the first error is the one to tell.
        let _ = fs::remove_file(&beside);
        wrong(path, error)
    })
}

fn generate_token(args: GenerateToken, config: Option<&Path>) -> Result {
    let (foreign, roles) = vocabulary(config)?;
    let mut known = PermissionSet::empty();
    // The server knows what its roles are; without its file nobody else does.
    let elsewhere =
        |name: &str| config.is_none() && name.strip_prefix("role:").is_some_and(Roles::is_name);
    for permission in &args.permissions {
        let good = roles.add(&mut known, permission, &foreign) || elsewhere(permission);
        if !good && !args.allow_unknown {
            let kind = if permission.starts_with("role:") { "role" } else { "permission" };
            return Err(Error::Usage(format!(
                "`{permission}` is no {kind}; `bailiwick auth show-permissions` lists them, \
                 --config FILE knows a server's own, --allow-unknown takes it all the same"
            )));
        }
    }
    for scope in [args.namespaces.as_deref(), Some(&*args.worker_namespaces)].into_iter().flatten()
    {
        Scope::parse(scope).map_err(|error| Error::Usage(error.to_string()))?;
    }
    let key =
        fs::read_to_string(&args.private_key).map_err(|error| wrong(&args.private_key, error))?;
    let life = match args.expiry_hours {
        Some(hours) => Duration::from_hours(hours.into()),
        None => {
            Settings::token_expiry(config, std::env::vars_os()).map_err(|error| refused(&error))?
        }
    };
    let now = SystemClock.now().seconds();
    let claims = Claims {
        sub: args.subject,
        iss: args.issuer,
        aud: args.audience,
        iat: now,
        exp: now.saturating_add_unsigned(life.as_secs()),
        permissions: args.permissions,
        namespaces: args.namespaces,
        worker_namespaces: args.worker_namespaces,
    };
    let token = tokens::sign(&key, &claims).map_err(|error| wrong(&args.private_key, error))?;
    output::line(token)
}

#[derive(Serialize)]
struct Validated {
    valid: bool,
    header: serde_json::Map<String, serde_json::Value>,
    claims: serde_json::Map<String, serde_json::Value>,
    faults: Vec<String>,
}

fn validate_token(
    args: ValidateToken,
    config: Option<&Path>,
    connection: &Connection,
    format: Format,
) -> Result {
    let token = connection.token()?;
    let pem =
        fs::read_to_string(&args.public_key).map_err(|error| wrong(&args.public_key, error))?;
    let key = PublicKey::from_pem(&pem).map_err(|error| wrong(&args.public_key, error))?;
    let (foreign, roles) = vocabulary(config)?;
    let ValidateToken { public_key: _, issuer, audience } = args;
    let expected = Expectations { issuer, audience, foreign, roles };
    let looked = tokens::inspect(token.trim(), &key, &expected, SystemClock.now());
    let faults: Vec<String> = looked.faults.iter().map(ToString::to_string).collect();
    let validated = Validated {
        valid: faults.is_empty(),
        header: looked.header,
        claims: looked.claims,
        faults,
    };
    match format {
        Format::Json => output::json(&validated)?,
        Format::Table => output::json(&validated.claims)?,
    }
    match validated.faults.as_slice() {
        [] => Ok(()),
        faults => Err(Error::Failed(format!("the token is refused: {}", faults.join("; ")))),
    }
}

async fn whoami(connection: &Connection, format: Format) -> Result {
    let client = connection.client().await?;
    let identity: view::Identity =
        client.access().who_am_i(pb::WhoAmIRequest {}).await?.into_inner().into();
    if format == Format::Json {
        return output::json(&identity);
    }
    let root = if identity.root { ", root" } else { "" };
    let view::Identity { subject, source, method, .. } = &identity;
    output::line(format!("{} ({source}, {method}{root})", output::word(subject)))?;
    if let Some(end) = &identity.expires_at {
        output::line(format!("until {end}"))?;
    }
    let rows: Vec<Vec<String>> = identity
        .grants
        .iter()
        .map(|grant| vec![grant.permissions.join(", "), grant.namespaces.join(", ")])
        .collect();
    output::table(&["PERMISSIONS", "NAMESPACES"], &rows)
}
