use std::os::unix::fs::{PermissionsExt as _, symlink};

use tempfile::TempDir;

use super::*;
use crate::domain::{Timestamp, secret::Secret};

fn file(folder: &TempDir) -> TokenFile {
    TokenFile::new(folder.path().join("auth.token"), BTreeSet::new())
}

fn new(number: u64) -> Zeroizing<Vec<u8>> {
    let secret = Secret::new(number, &[7; 32]);
    line(secret.expose(), &["tasks:read".to_owned()], None, Timestamp::default())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn dk_36_37_a_change_leaves_a_private_file_and_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(&folder);
    assert!(file.read().unwrap().tokens.is_empty() && !file.path().exists());
    fs::write(file.path(), "# mine\nlegacy-token\n").unwrap();
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(file.read().unwrap().exposed);
    // What a killed writer left behind, wider than it may be.
    fs::write(file.beside(".tmp"), "old").unwrap();
    fs::set_permissions(file.beside(".tmp"), fs::Permissions::from_mode(0o666)).unwrap();
    let snapshot = file.add(&new(1)).unwrap();
    assert_eq!(snapshot.tokens.len(), 2);
    assert_eq!(snapshot.digest, file.read().unwrap().digest);
    assert_eq!(mode(file.path()), 0o600);
    assert!(!file.beside(".tmp").exists());
    let text = fs::read(file.path()).unwrap();
    assert_eq!(text, [b"# mine\nlegacy-token\n".as_slice(), new(1).as_slice()].concat());
}

#[test]
fn se_36_a_file_that_others_could_have_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(&folder);
    let real = folder.path().join("real");
    fs::write(&real, "legacy-token\n").unwrap();
    symlink(&real, file.path()).unwrap();
    assert!(matches!(file.read(), Err(Error::Link(_))));
    assert!(matches!(file.add(&new(1)), Err(Error::Link(_))));
    fs::remove_file(file.path()).unwrap();
    fs::create_dir(file.path()).unwrap();
    assert!(matches!(file.read(), Err(Error::Kind(_))));
    fs::remove_dir(file.path()).unwrap();
    fs::write(file.path(), "legacy-token\n").unwrap();
    for wide in [0o620, 0o602, 0o666] {
        fs::set_permissions(file.path(), fs::Permissions::from_mode(wide)).unwrap();
        assert!(matches!(file.read(), Err(Error::Writable { mode, .. }) if mode == wide));
        assert!(matches!(file.remove(&["x".into()]), Err(Error::Writable { .. })));
    }
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(file.read().unwrap().tokens.len(), 1);
    assert_eq!(fs::read(&real).unwrap(), b"legacy-token\n");
}

#[test]
fn dk_38_39_what_fails_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(&folder);
    file.add(&new(1)).unwrap();
    let before = fs::read(file.path()).unwrap();
    // Stands for every disk that refuses: nobody can write there.
    fs::create_dir(file.beside(".tmp")).unwrap();
    assert!(matches!(file.add(&new(2)), Err(Error::Io { what: "write", .. })));
    assert!(file.remove(&["000000000001".into()]).is_err());
    assert!(file.replace("000000000001", &new(2)).is_err());
    assert_eq!(fs::read(file.path()).unwrap(), before);
}

#[test]
fn se_36_an_edit_in_between_is_seen_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(&folder);
    file.add(&new(1)).unwrap();
    // Somebody without our lock writes while the change is prepared.
    let edits = std::cell::Cell::new(2);
    let changed = file.change(|document| {
        if edits.get() > 0 {
            edits.set(edits.get() - 1);
            let text = [fs::read(file.path()).unwrap(), new(10 + edits.get()).to_vec()].concat();
            fs::write(folder.path().join("new"), text).unwrap();
            fs::rename(folder.path().join("new"), file.path()).unwrap();
        }
        Some(document.with(&new(2)))
    });
    assert_eq!(changed.unwrap().1.tokens.len(), 4);
    assert_eq!(file.read().unwrap().tokens.len(), 4);
    let never = file.change(|document| {
        fs::write(file.path(), [fs::read(file.path()).unwrap(), b"\n".to_vec()].concat()).unwrap();
        Some(document.with(&new(3)))
    });
    assert!(matches!(never, Err(Error::Busy(_))));
    assert!(!file.beside(".tmp").exists());
}

#[test]
fn dk_40_parallel_changes_of_several_owners_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(&folder);
    thread::scope(|scope| {
        for number in 0..10 {
            let file = file.clone();
            scope.spawn(move || file.add(&new(number)).unwrap());
        }
    });
    let snapshot = file.read().unwrap();
    assert_eq!((snapshot.tokens.len(), snapshot.faults.len()), (10, 0));
    let (gone, left) = file.remove(&["000000000003".into()]).unwrap();
    assert!(gone && left.tokens.len() == 9);
    assert!(!file.remove(&["000000000003".into()]).unwrap().0);
    let (replaced, left) = file.replace("000000000004", &new(3)).unwrap();
    assert!(replaced && left.tokens.len() == 9);
}
