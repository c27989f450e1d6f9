//! What the kernel may keep: of a volume for one machine names and attributes, of one that others mount nothing.

use super::*;
use crate::rights::Right;

fn exclusive() -> MemCluster {
    MemCluster::new(VolumeConfig { copies: 1, copies_min: 1, exclusive: true, ..VolumeConfig::default() })
}

/// Records what was made void.
#[derive(Default)]
struct Voided(Mutex<Vec<InodeId>>);

impl Voided {
    fn on(fs: &Mount) -> Arc<Voided> {
        let voided = Arc::new(Voided::default());
        fs.set_notifier(Arc::clone(&voided) as Arc<dyn Notifier>);
        voided
    }

    fn take(&self) -> Vec<InodeId> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl Notifier for Voided {
    fn invalidate(&self, _ino: InodeId, _offset: u64, _length: u64) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    fn void(&self, ino: InodeId) -> BoxFuture<'_, ()> {
        self.0.lock().push(ino);
        std::future::ready(()).boxed()
    }
}

async fn kept(fs: &Mount, file: &str) -> (bool, bool) {
    let entry = fs.lookup(&me(), ROOT, name(file)).await.unwrap();
    let attributes = fs.getattr(&me(), entry.attributes.ino, None).await.unwrap();
    assert_eq!(attributes.ttl.is_zero(), entry.attribute_ttl.is_zero());
    (!entry.entry_ttl.is_zero(), !entry.attribute_ttl.is_zero())
}

#[tokio::test]
async fn nothing_is_kept_of_a_volume_that_others_mount() {
    let cluster = cluster();
    let fs = mount(&cluster);
    let (entry, _) = fs.create(&me(), ROOT, name("file"), 0o644, RDWR).await.unwrap();
    assert_eq!((entry.entry_ttl, entry.attribute_ttl), (Duration::ZERO, Duration::ZERO));
    assert_eq!(kept(&fs, "file").await, (false, false));
    let listed = fs.readdir(&me(), ROOT, 0, 0, 4096, true).await.unwrap();
    assert!(listed.iter().filter_map(|listed| listed.entry.as_ref()).all(|entry| entry.entry_ttl.is_zero()));
}

#[tokio::test]
async fn names_and_attributes_are_kept_of_a_volume_for_one_machine() {
    let cluster = exclusive();
    let fs = mount(&cluster);
    let open = create(&fs, "file").await;
    assert_eq!(kept(&fs, "file").await, (true, true));
    // Until it is committed, what is buffered may change what the kernel doesn't look at.
    write(&fs, open, 0, b"data").await;
    assert_eq!(kept(&fs, "file").await, (true, false));
    close(&fs, open).await;
    assert_eq!(kept(&fs, "file").await, (true, true));
    // A write clears these bits.
    let set_id = AttributeChanges { mode: Some(0o4755), ..AttributeChanges::default() };
    let set = fs.setattr(&me(), open.0, None, set_id).await.unwrap();
    assert_eq!((set.ttl, kept(&fs, "file").await), (Duration::ZERO, (true, false)));
    let entry = fs.mkdir(&me(), ROOT, name("directory"), 0o2755).await.unwrap();
    assert!(!entry.entry_ttl.is_zero() && !entry.attribute_ttl.is_zero());
    // Without the cluster the session may be over soon.
    fs.metadata().set_away(true);
    assert_eq!(fs.right(open.0), Right::None);
}

#[tokio::test]
async fn what_a_listing_has_in_stock_is_not_kept_after_a_change() {
    let cluster = exclusive();
    let fs = mount(&cluster);
    let directory = fs.mkdir(&me(), ROOT, name("directory"), 0o755).await.unwrap().attributes.ino;
    for file in 0..40 {
        fs.mknod(&me(), directory, name(&format!("{file:02}")), libc::S_IFREG | 0o644, 0).await.unwrap();
    }
    let open = async || fs.opendir(&me(), directory, 0).await.unwrap().handle;
    let page = async |handle, cookie| fs.readdir(&me(), directory, handle, cookie, 2048, true).await.unwrap();
    let entries =
        |page: &[DirEntry]| page.iter().filter_map(|listed| listed.entry.clone()).collect::<Vec<_>>();
    let is_kept = |entry: &Entry| (!entry.entry_ttl.is_zero(), !entry.attribute_ttl.is_zero());
    // Attributes of one of those that follow.
    let handle = open().await;
    let first = page(handle, 0).await;
    assert!(entries(&first).len() > 3 && entries(&first).iter().all(|entry| is_kept(entry) == (true, true)));
    let names = (0..40).map(|file| name(&format!("{file:02}")));
    let later: Vec<_> = names.filter(|name| first.iter().all(|listed| listed.name != *name)).collect();
    let changed = fs.lookup(&me(), directory, later[0].clone()).await.unwrap().attributes.ino;
    let mode = AttributeChanges { mode: Some(0o600), ..AttributeChanges::default() };
    fs.setattr(&me(), changed, None, mode).await.unwrap();
    let (mut last, mut found) = (first.last().unwrap().cookie, 0);
    loop {
        let next = page(handle, last).await;
        let Some(listed) = next.last() else { break };
        last = listed.cookie;
        found += entries(&next).len();
        assert!(entries(&next).iter().all(|it| is_kept(it) == (true, it.attributes.ino != changed)));
    }
    assert_eq!(found, later.len());
    // A name of the directory: all that was asked for before may be gone.
    let handle = open().await;
    let first = page(handle, 0).await;
    fs.unlink(&me(), directory, later[1].clone()).await.unwrap();
    assert_eq!(entries(&page(handle, first.last().unwrap().cookie).await), []);
    assert!(!entries(&page(handle, 0).await).is_empty(), "it was asked for anew");
}

#[tokio::test]
async fn what_others_may_process_late_is_void_before_a_change_is_answered() {
    let cluster = exclusive();
    let fs = mount(&cluster);
    let voided = Voided::on(&fs);
    let other = Caller { pid: 8, ..me() };
    let look = async |ino| assert!(!fs.getattr(&other, ino, None).await.unwrap().ttl.is_zero());
    look(ROOT).await;
    let file = put(&fs, "file", b"data").await;
    assert_eq!(voided.take(), [ROOT]);
    fs.mkdir(&me(), ROOT, name("directory"), 0o755).await.unwrap();
    assert_eq!(voided.take(), [], "it is void already");
    stat(&fs, ROOT).await;
    fs.rmdir(&me(), ROOT, name("directory")).await.unwrap();
    assert_eq!(voided.take(), [], "it has processed what it was told itself");
    look(file).await;
    fs.link(&me(), file, ROOT, name("second")).await.unwrap();
    assert_eq!(voided.take(), [file]);
    look(file).await;
    fs.rename(&me(), ROOT, name("second"), ROOT, name("third"), 0).await.unwrap();
    assert_eq!(voided.take(), [file]);
    look(file).await;
    fs.setxattr(&me(), file, name("user.x"), name("y"), 0, false).await.unwrap();
    assert_eq!(voided.take(), [file]);
    look(file).await;
    fs.unlink(&me(), ROOT, name("third")).await.unwrap();
    assert_eq!(voided.take(), [file]);
}
