use super::content::SECTOR;
use super::*;

fn read(file: &dyn DiskFile, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    let n = file.read_at(&mut buf, 0).unwrap();
    buf.truncate(n);
    buf
}

#[test]
fn synced_data_and_names_survive_every_cut() {
    for seed in 0..50 {
        let disk = FaultyDisk::new(seed, 1 << 20);
        disk.create_dir("d").unwrap();
        disk.sync_dir("").unwrap();
        let file = disk.create("d/a").unwrap();
        file.write_at(&[5; 9000], 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir("d").unwrap();
        file.write_at(&[6; 100], 9000).unwrap();
        disk.power_on();
        assert!(file.sync_data().is_err(), "a file from before the cut is dead");
        let file = disk.open("d/a").unwrap();
        assert_eq!(read(&*file, 9000), vec![5; 9000]);
    }
}

#[test]
fn unsynced_data_is_lost_tornly_for_some_seed() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let disk = FaultyDisk::new(seed, 1 << 20);
        let file = disk.create("a").unwrap();
        disk.sync_dir("").unwrap();
        file.write_at(&[0; 4096], 0).unwrap();
        file.sync_data().unwrap();
        file.write_at(&[7; 4096], 0).unwrap();
        disk.power_on();
        match read(&*disk.open("a").unwrap(), 4096).iter().filter(|b| **b == 7).count() {
            0 => lost += 1,
            4096 => kept += 1,
            n if n % SECTOR == 0 => torn += 1,
            n => panic!("torn within a sector: {n}"),
        }
    }
    assert!(kept > 0 && lost > 0 && torn > 0, "{kept} {lost} {torn}");
}

#[test]
fn names_survive_as_a_prefix() {
    let (mut none, mut one, mut both) = (0, 0, 0);
    for seed in 0..100 {
        let disk = FaultyDisk::new(seed, 1 << 20);
        disk.create("a").unwrap();
        disk.rename("a", "b").unwrap();
        disk.power_on();
        match (disk.open("a").is_ok(), disk.open("b").is_ok()) {
            (false, false) => none += 1,
            (true, false) => one += 1,
            (false, true) => both += 1,
            (true, true) => panic!("a rename made two names"),
        }
    }
    assert!(none > 0 && one > 0 && both > 0);
}

#[test]
fn a_failed_sync_loses_what_it_should_have_kept() {
    let disk = FaultyDisk::new(1, 1 << 20);
    let file = disk.create("a").unwrap();
    disk.sync_dir("").unwrap();
    file.write_at(&[7; 10], 0).unwrap();
    disk.fail(Fault { op: Op::Sync, path_contains: "a".into(), errno: libc::EIO, times: 1 });
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    assert_eq!(read(&*file, 10), vec![7; 10], "the cache still shows it");
    disk.power_on();
    assert_eq!(read(&*disk.open("a").unwrap(), 10), Vec::<u8>::new());
}

#[test]
fn full_and_given_back() {
    let disk = FaultyDisk::new(1, 8 * 4096);
    let file = disk.create("a").unwrap();
    file.write_at(&[1; 8 * 4096], 0).unwrap();
    assert!(crate::disk::is_no_space(&file.write_at(&[1; 1], 8 * 4096).unwrap_err()));
    file.write_at(&[2; 4096], 0).unwrap();
    file.punch(4096, 8192).unwrap();
    assert_eq!(disk.space().unwrap().free_bytes, 8192);
    drop(file);
    disk.unlink("a").unwrap();
    assert_eq!(disk.space().unwrap().free_bytes, 8 * 4096);
}

#[test]
fn the_fuse_blows_after_so_many_changes() {
    let disk = FaultyDisk::new(1, 1 << 20);
    let file = disk.create("a").unwrap();
    disk.power_off_after(1);
    file.write_at(&[1], 0).unwrap();
    assert!(file.write_at(&[1], 0).is_err());
    assert!(disk.is_off() && file.len().is_err());
    disk.power_on();
    disk.create("b").unwrap();
}
