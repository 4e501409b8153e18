use super::*;
use crate::mail::{self, Letter};
use mio::{Poll, Token};
use std::fs;
use std::sync::mpsc::Receiver;

const NOW: Instant = Instant::ORIGIN;

struct Desk {
    _poll: Poll,
    post: Post,
    letters: Receiver<Letter>,
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let poll = Poll::new().unwrap();
        let (post, letters) = mail::open(poll.registry(), Token(0)).unwrap();
        Self { _poll: poll, post, letters, dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    fn open(&self, mode: AuditSync) -> Audit {
        Audit::open(&self.path(), mode).unwrap()
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    fn wait_for_sync(&self) -> io::Result<()> {
        let Letter::Synced(result) = self.letters.recv().unwrap() else { panic!("not a sync") };
        result
    }
}

#[test]
fn the_file_exists_from_the_start_with_its_mode() {
    let desk = Desk::new();
    let _audit = desk.open(AuditSync::Never);
    let meta = fs::metadata(desk.path()).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (0, 0o640));
}

#[test]
fn a_file_in_use_keeps_its_mode_and_content() {
    let desk = Desk::new();
    fs::write(desk.path(), "one\n").unwrap();
    fs::set_permissions(desk.path(), Permissions::from_mode(0o600)).unwrap();
    let mut audit = desk.open(AuditSync::Never);
    assert_eq!(audit.append(NOW, b"two\n", &desk.post).unwrap(), Appended::Done);
    assert_eq!(desk.text(), "one\ntwo\n");
    assert_eq!(fs::metadata(desk.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn there_is_one_writer() {
    let desk = Desk::new();
    let _audit = desk.open(AuditSync::Never);
    let error = Audit::open(&desk.path(), AuditSync::Never).unwrap_err();
    assert_eq!(error.exit, Exit::Unavailable);
    assert!(error.message.ends_with("audit.log: another process writes it"), "{}", error.message);
}

#[test]
fn a_log_that_cannot_be_made_is_an_error_that_names_it() {
    let error = Audit::open(Path::new("/nonexistent/audit.log"), AuditSync::Never).unwrap_err();
    assert_eq!(error.exit, Exit::Config);
    assert!(error.message.starts_with("audit log /nonexistent/audit.log: "), "{}", error.message);
}

#[test]
fn a_torn_last_line_is_kept_aside() {
    let long = "x".repeat(200_000);
    for (before, after, torn) in [
        ("one\ntw", "one\n", "tw\n".to_owned()),
        ("tw", "", "tw\n".to_owned()),
        (&format!("one\n{long}"), "one\n", format!("{long}\n")),
    ] {
        let desk = Desk::new();
        fs::write(desk.path(), before).unwrap();
        let mut audit = desk.open(AuditSync::Never);
        audit.append(NOW, b"next\n", &desk.post).unwrap();
        assert_eq!(desk.text(), format!("{after}next\n"));
        assert_eq!(fs::read_to_string(desk.dir.path().join("audit.log.torn")).unwrap(), torn);
    }
}

#[test]
fn a_whole_last_line_is_left_alone() {
    let desk = Desk::new();
    fs::write(desk.path(), "one\n").unwrap();
    drop(desk.open(AuditSync::Never));
    assert_eq!(desk.text(), "one\n");
    assert!(!desk.dir.path().join("audit.log.torn").exists());
}

#[test]
fn a_full_disk_is_an_error_and_not_a_gap() {
    let desk = Desk::new();
    let mut audit = Audit::open(Path::new("/dev/full"), AuditSync::Interval).unwrap();
    let error = audit.append(NOW, b"one\n", &desk.post).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(audit.poll_timeout(), None, "there is nothing to sync");
}

/// The limit holds for the whole process, and other tests write files: so this one runs itself in a process.
#[test]
fn a_short_write_is_taken_back() {
    const INNER: &str = "CARAPACE_TEST_SHORT_WRITE";
    if std::env::var_os(INNER).is_none() {
        let name = "audit::tests::a_short_write_is_taken_back";
        let inner = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(INNER, "1")
            .output()
            .unwrap();
        assert!(inner.status.success(), "{}", String::from_utf8_lossy(&inner.stderr));
        return;
    }
    crate::raw::signal::default_dispositions();
    let desk = Desk::new();
    let mut audit = desk.open(AuditSync::Never);
    audit.append(NOW, b"first\n", &desk.post).unwrap();
    let fsize = nix::sys::resource::Resource::RLIMIT_FSIZE;
    nix::sys::resource::setrlimit(fsize, 10, 100).unwrap();
    assert!(audit.append(NOW, b"second\n", &desk.post).is_err());
    assert_eq!(desk.text(), "first\n");
    nix::sys::resource::setrlimit(fsize, 100, 100).unwrap();
    assert_eq!(audit.append(NOW, b"third\n", &desk.post).unwrap(), Appended::Done);
    assert_eq!(desk.text(), "first\nthird\n");
}

#[test]
fn each_turn_waits_for_the_disk_where_that_is_asked_for() {
    let desk = Desk::new();
    let mut audit = desk.open(AuditSync::Turn);
    assert_eq!(audit.append(NOW, b"one\n", &desk.post).unwrap(), Appended::Later);
    assert_eq!(audit.append(NOW, b"two\n", &desk.post).unwrap(), Appended::Busy);
    assert_eq!(desk.text(), "one\n");
    let result = desk.wait_for_sync();
    let (count, result) = audit.synced(NOW, result, &desk.post).unwrap();
    assert_eq!((count, result.is_ok()), (4, true));
    assert_eq!(audit.append(NOW, b"two\n", &desk.post).unwrap(), Appended::Later);
    let (count, result) = audit.synced(NOW, Err(ErrorKind::Other.into()), &desk.post).unwrap();
    assert_eq!((count, result.is_err()), (4, true));
    assert_eq!(desk.text(), "one\n", "what may not be on the disk is taken back");
}

#[test]
fn the_syncing_thread_is_let_go() {
    let desk = Desk::new();
    let mut audit = desk.open(AuditSync::Turn);
    audit.append(NOW, b"one\n", &desk.post).unwrap();
    let result = desk.wait_for_sync();
    audit.synced(NOW, result, &desk.post);
    let until = audit.poll_timeout().unwrap();
    assert_eq!(until, NOW + THREAD_IDLE);
    audit.handle_timeout(until, &desk.post);
    assert_eq!(audit.poll_timeout(), None);
}

#[test]
fn records_are_synced_within_a_second_of_the_first() {
    let desk = Desk::new();
    let mut audit = desk.open(AuditSync::Interval);
    assert_eq!(audit.append(NOW, b"one\n", &desk.post).unwrap(), Appended::Done);
    let half = NOW + Duration::from_millis(500);
    assert_eq!(audit.append(half, b"two\n", &desk.post).unwrap(), Appended::Done);
    let due = audit.poll_timeout().unwrap();
    assert_eq!(due, NOW + SYNC_INTERVAL);
    audit.handle_timeout(due, &desk.post);
    audit.append(due, b"three\n", &desk.post).unwrap();
    let result = desk.wait_for_sync();
    assert!(audit.synced(due, result, &desk.post).is_none());
    assert_eq!(audit.poll_timeout(), Some(due + SYNC_INTERVAL), "what came meanwhile is synced, too");
}

#[test]
fn a_log_that_was_moved_away_is_opened_anew() {
    let desk = Desk::new();
    let mut audit = desk.open(AuditSync::Never);
    audit.append(NOW, b"one\n", &desk.post).unwrap();
    audit.reopen(NOW, &desk.post);
    audit.append(NOW, b"two\n", &desk.post).unwrap();
    let moved = desk.dir.path().join("audit.log.1");
    fs::rename(desk.path(), &moved).unwrap();
    audit.append(NOW, b"three\n", &desk.post).unwrap();
    audit.reopen(NOW, &desk.post);
    audit.append(NOW, b"four\n", &desk.post).unwrap();
    assert_eq!(fs::read_to_string(moved).unwrap(), "one\ntwo\nthree\n");
    assert_eq!(desk.text(), "four\n");
}
