//! Tokens that are kept in a file, beside what the gate sees of them. The
//! file is written first; what others write there counts soon.
//!
//! Not here: the file's format and how it is written (`storage::token_file`).

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::Rng as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Admin, Error, Result, TRIES};
use crate::{
    authz::System,
    domain::{
        Scope,
        history::Stamp,
        principal::{Identity, Source},
        secret::Secret,
    },
    storage::{
        self, AuditDraft, CredentialKind, CredentialRecord,
        token_file::{self, Fault, Snapshot, TokenFile, TokenLine},
    },
};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a file that is edited in place may go on changing until what
/// stands there counts all the same.
const LOOKS_MAX: u32 = 3;
/// How long tokens still count when their file cannot be read (SE-36).
const STALE_MAX: Duration = Duration::from_mins(1);

/// Where minted tokens are kept.
#[derive(Debug)]
pub enum Tokens {
    /// In the store.
    Database,
    /// In a file.
    File(Arc<FileTokens>),
}

/// The tokens of a file.
#[derive(Debug)]
pub struct FileTokens {
    file: TokenFile,
    well: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What counts now.
    applied: Option<[u8; 32]>,
    /// What stands there instead, and how often it did not stay the same.
    pending: Option<([u8; 32], u32)>,
    /// Since when the file cannot be read.
    failing: Option<Instant>,
    /// Whether its tokens are refused for that.
    refused: bool,
    /// Digests of tokens that a call took back: no edit that knew them before
    /// brings them back in the life of this process.
    revoked: HashSet<[u8; 32]>,
    /// What the log said last about lines that count for nothing.
    warned: Vec<(usize, Fault)>,
}

impl FileTokens {
    /// Of this file.
    #[must_use]
    pub fn new(file: TokenFile) -> Arc<Self> {
        Arc::new(Self { file, well: AtomicBool::new(true), state: Mutex::default() })
    }

    /// Whether the file can be read.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.well.load(Ordering::Relaxed)
    }

    /// Takes up what stands there; the start fails when it is refused.
    pub(super) async fn load(&self, admin: &Admin) -> Result<()> {
        let snapshot = self.on_disk(TokenFile::read).await?;
        if snapshot.exposed {
            let path = self.file.path().display();
            tracing::warn!("others can read the token file `{path}`; run `chmod 600` on it");
        }
        self.apply(admin, &snapshot);
        Ok(())
    }

    /// Takes up what a change of ours left. Revoked tokens that came back
    /// meanwhile are for the next look.
    fn changed(&self, admin: &Admin, snapshot: &Snapshot) {
        if !self.apply(admin, snapshot).is_empty() {
            self.state().applied = None;
        }
    }

    /// Mints a token into the file, in the place of another one where that is
    /// given; none when that one is not there any more. The caller holds the
    /// order.
    pub(super) async fn issue(
        &self,
        admin: &Admin,
        mut record: CredentialRecord,
        replaces: Option<&TokenId>,
        stamp: &Stamp,
    ) -> Result<Option<(Secret, CredentialRecord)>> {
        let secret = Self::fresh_secret(admin)?;
        record.id = secret.id();
        record.digest = secret.digest();
        record.family = Arc::clone(&record.id);
        let (scopes, name) = (&record.scopes, record.name.as_deref());
        let line = token_file::line(secret.expose(), scopes, name, record.created_at);
        let old = replaces.map(|old| Arc::clone(&old.id));
        let changed = move |file: &TokenFile| match old {
            Some(old) => file.replace(&old, &line),
            None => file.add(&line).map(|snapshot| (true, snapshot)),
        };
        let (done, snapshot) = self.on_disk(changed).await?;
        if let Some(old) = replaces.filter(|_| done) {
            self.state().revoked.insert(old.digest);
        }
        self.changed(admin, &snapshot);
        if done {
            let detail = record.given_out(replaces.map(|old| &*old.id));
            recorded(admin, stamp, [(&*record.id, &detail)]).await?;
        }
        Ok(done.then_some((secret, record)))
    }

    /// Takes tokens out of the file; false when none of them was there. The
    /// caller holds the order.
    pub(super) async fn revoke(
        &self,
        admin: &Admin,
        tokens: &[TokenId],
        stamp: &Stamp,
    ) -> Result<bool> {
        let ids: Vec<Arc<str>> = tokens.iter().map(|token| Arc::clone(&token.id)).collect();
        let (done, snapshot) = self.on_disk(move |file| file.remove(&ids)).await?;
        if done {
            self.state().revoked.extend(tokens.iter().map(|token| token.digest));
        }
        self.changed(admin, &snapshot);
        if done {
            let detail = serde_json::json!({ "change": "revoked" });
            recorded(admin, stamp, tokens.iter().map(|token| (&*token.id, &detail))).await?;
        }
        Ok(done)
    }

    /// A secret whose public id is free.
    fn fresh_secret(admin: &Admin) -> Result<Secret> {
        for _ in 0..TRIES {
            let (id, bytes): (u64, [u8; 32]) = rand::rng().random();
            let secret = Secret::new(id, &bytes);
            if admin.issued.get(&secret.id()).is_none() {
                return Ok(secret);
            }
        }
        Err(Error::Storage(storage::Error::Unavailable("no free id was found".into())))
    }

    /// Looks at the file once: what stood there at two looks in a row counts,
    /// so that an edit in place is not taken up half done.
    async fn look(&self, admin: &Admin) {
        let _order = admin.order.lock().await;
        match self.on_disk(TokenFile::read).await {
            Ok(snapshot) => {
                if self.settled(&snapshot) {
                    tracing::info!("the token file has changed");
                    let returned = self.apply(admin, &snapshot);
                    let detail = serde_json::json!({ "change": "token file taken up" });
                    let taken = recorded(admin, &Stamp::system(), [("token_file", &detail)]).await;
                    if let Err(error) = taken {
                        tracing::error!(%error, "a change of the token file has no record");
                    }
                    self.remove_again(admin, returned).await;
                }
            }
            Err(error) => self.failed(admin, &error),
        }
    }

    /// SE-36: an old copy of the file brings no revoked token back, not even
    /// for the next start.
    async fn remove_again(&self, admin: &Admin, returned: Vec<Arc<str>>) {
        if returned.is_empty() {
            return;
        }
        match self.on_disk(move |file| file.remove(&returned)).await {
            Ok((_, snapshot)) => self.changed(admin, &snapshot),
            Err(error) => tracing::error!(%error, "revoked tokens stay in the token file"),
        }
    }

    /// Whether what stands there is new and shall count.
    fn settled(&self, snapshot: &Snapshot) -> bool {
        let mut state = self.state();
        if state.failing.take().is_some() {
            tracing::info!("the token file can be read again");
        }
        self.well.store(true, Ordering::Relaxed);
        if state.applied == Some(snapshot.digest) {
            state.pending = None;
            return false;
        }
        let looks = state.pending.map_or(0, |(_, looks)| looks) + 1;
        let same = state.pending.is_some_and(|(digest, _)| digest == snapshot.digest);
        state.pending = Some((snapshot.digest, looks));
        same || looks >= LOOKS_MAX
    }

    /// SE-36: not ready at once; after a while the tokens count no more.
    fn failed(&self, admin: &Admin, error: &Error) {
        let mut state = self.state();
        state.pending = None;
        self.well.store(false, Ordering::Relaxed);
        let Some(since) = state.failing else {
            tracing::error!(%error, "the token file cannot be read; the server is not ready");
            state.failing = Some(Instant::now());
            return;
        };
        if since.elapsed() >= STALE_MAX && !state.refused {
            state.refused = true;
            state.applied = None;
            tracing::error!(%error, "the token file cannot be read; its tokens are refused");
            admin.issued.remove_tokens();
        }
    }

    /// Makes what stands in the file count; answers the revoked tokens in it,
    /// which do not.
    fn apply(&self, admin: &Admin, snapshot: &Snapshot) -> Vec<Arc<str>> {
        let mut state = self.state();
        if state.warned != snapshot.faults {
            for (line, fault) in &snapshot.faults {
                tracing::warn!(line, "a line of the token file counts for nothing: {fault}");
            }
            state.warned.clone_from(&snapshot.faults);
        }
        let (revoked, tokens): (Vec<_>, Vec<_>) =
            snapshot.tokens.iter().partition(|token| state.revoked.contains(&token.digest));
        for token in &revoked {
            tracing::warn!(
                credential = &*token.id,
                "a revoked token is in the token file again; it stays revoked"
            );
        }
        let records = tokens.into_iter().map(record).collect();
        for id in admin.issued.replace_tokens(records, admin.now()) {
            tracing::warn!(credential = &*id, "a token of the file has the id of an API key");
        }
        state.refused = false;
        state.applied = Some(snapshot.digest);
        state.pending = None;
        revoked.into_iter().map(|token| Arc::clone(&token.id)).collect()
    }

    /// Runs where it may block.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&TokenFile) -> std::result::Result<T, token_file::Error> + Send + 'static,
    ) -> Result<T> {
        let file = self.file.clone();
        match tokio::task::spawn_blocking(move || work(&file)).await {
            Ok(done) => Ok(done?),
            Err(error) => Err(Error::Storage(storage::Error::Broken(error.into()))),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token by its public id and its digest.
#[derive(Debug)]
pub(super) struct TokenId {
    pub(super) id: Arc<str>,
    pub(super) digest: [u8; 32],
}

impl From<&CredentialRecord> for TokenId {
    fn from(record: &CredentialRecord) -> Self {
        Self { id: Arc::clone(&record.id), digest: record.digest }
    }
}

/// The file is no part of the store: its changes have their records before
/// the answer, not in one transaction with it.
async fn recorded<'a>(
    admin: &Admin,
    stamp: &Stamp,
    changes: impl IntoIterator<Item = (&'a str, &'a serde_json::Value)>,
) -> Result<()> {
    let now = admin.now();
    let draft = |(object, detail)| AuditDraft::of_change(stamp, object, detail, now);
    Ok(admin.store.append_audit(changes.into_iter().map(draft).collect()).await?)
}

/// Watches the token file, if there is one, until the shutdown.
pub async fn watch(admin: Arc<Admin>, _: System, shutdown: CancellationToken) {
    let Tokens::File(tokens) = &admin.tokens else { return };
    while tokio::time::timeout(LOOK_EVERY, shutdown.cancelled()).await.is_err() {
        tokens.look(&admin).await;
    }
}

fn record(line: &TokenLine) -> CredentialRecord {
    CredentialRecord {
        id: Arc::clone(&line.id),
        digest: line.digest,
        kind: CredentialKind::Token,
        name: line.name.clone(),
        scopes: line.scopes.clone(),
        namespaces: Scope::Everything.to_strings(),
        networks: Vec::new(),
        created_by: Identity { source: Source::File, issuer: "".into(), subject: "".into() },
        created_with: "".into(),
        created_at: line.created_at.unwrap_or_default(),
        expires_at: None,
        max_uses: None,
        uses: 0,
        parent: None,
        family: Arc::clone(&line.id),
        descent: Vec::new(),
        revoked_at: None,
        last_used_at: None,
    }
}
