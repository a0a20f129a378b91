//! The FUSE adapter: requests of the kernel become calls of a [`Volume`], and their results replies. No filesystem logic here.
//!
//! What is answered with ENOSYS on purpose, so that the kernel stops asking: `open`, `opendir` (where it knows what that means) and
//! `flush` (there is nothing to do), and `create` (it does mknod instead, and no release follows).

mod reply;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, TimeOrNow, WriteFlags,
};

use super::control::Control;
use super::convert::{
    check_xattr_name, fallocate_mode, file_type, inode_no, kind_of_mode, now, rename_mode, reply_open, time,
    time_or_now,
};
use super::counters::{Counters, Request, Running};
use super::damage::{Damage, Scrubber};
use super::flusher::{Flusher, WHOLE};
use super::report::{findings, report};
use super::seek::{Wanted, reply_offset};
use super::volume::Volume;
use crate::fs::{Attributes, Caller, Cookie, FsError, Ino, Kind, New, Result, SetAttributes, SetXattr};
use crate::page::BLOCK_SIZE;
use reply::validity;

/// The kernel's cap on a request.
const REQUEST_MAX: u32 = 1 << 20;
/// Requests that the kernel keeps under way for reading ahead and writing behind.
const BACKGROUND_MAX: u16 = 128;
/// Entries that one call collects for a reply.
const ENTRIES_PER_REPLY: usize = 512;
/// The longest list of extended attributes that the kernel passes on.
const XATTR_LIST_MAX: usize = 65536;

/// What to do when the image turns out to be damaged while something is being changed, or cannot be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnError {
    /// Refuse all further changes.
    #[default]
    RemountReadOnly,
    /// End the process; the mount is dead then.
    Abort,
}

/// How the adapter behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdapterOptions {
    /// Let the kernel collect writes (a weaker promise: see the README).
    pub writeback: bool,
    /// What to do about errors.
    pub on_error: OnError,
    /// Whether there are more workers than one, so that one may wait for the disk.
    pub spare_worker: bool,
    /// Only user 0 and the owner are let in: fuser refuses the requests of others.
    pub only_some: bool,
    /// Who may use the controls that change the volume, beside user 0.
    pub owner: u32,
}

/// A volume as fuser sees it.
pub struct Adapter<V: Volume> {
    volume: Arc<V>,
    counters: Arc<Counters>,
    options: AdapterOptions,
    flusher: Arc<Flusher>,
    damage: Arc<Damage>,
    scrubber: Scrubber,
    kernel: InitFlags,
}

fn ino(n: INodeNo) -> Ino {
    Ino(n.0)
}

impl<V: Volume> Adapter<V> {
    /// An adapter for a volume.
    pub fn new(
        volume: Arc<V>,
        counters: Arc<Counters>,
        options: AdapterOptions,
        flusher: Arc<Flusher>,
    ) -> Self {
        let (damage, scrubber) = (Arc::new(Damage::new(options.on_error)), Scrubber::default());
        Adapter { volume, counters, options, flusher, damage, scrubber, kernel: InitFlags::empty() }
    }

    fn begin(&self, request: Request) -> Running<'_> {
        self.counters.begin(request)
    }

    fn caller(&self, req: &fuser::Request) -> Caller {
        Caller { privileged: req.uid() == 0, ..Caller::new(req.uid(), req.gid(), now()) }
    }

    /// To be called before something is read, for the answer may bring the access time along.
    fn accessed(&self, n: INodeNo) -> Result<()> {
        self.volume.accessed(ino(n), now())
    }

    /// Makes everything durable and replies then, from the thread that did it: one worker sleeps on the disk at the most (M3).
    fn sync(&self, reply: ReplyEmpty) {
        let (counters, started) = (self.counters.clone(), Instant::now());
        let on_error = self.options.on_error;
        let done = move |result: Result<()>| {
            counters.add(Request::Fsync, started, result.is_err());
            match result {
                Ok(()) => reply.ok(),
                Err(e) => {
                    log::error!("fsync: {e}");
                    if on_error == OnError::Abort {
                        log::logger().flush();
                        std::process::abort();
                    }
                    // Also where the volume has become read-only by an error: this is about data that were taken before.
                    reply.error(Errno::EIO);
                }
            }
        };
        self.volume.sync_then(self.options.spare_worker, Box::new(done));
    }

    fn create(
        &self,
        run: Running<'_>,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        (new, mode, umask): (New<'_>, u32, u32),
        reply: ReplyEntry,
    ) {
        let (mode, umask) = ((mode & 0o7777) as u16, (umask & 0o777) as u16);
        let mut caller = self.caller(req);
        let keeps = match new {
            // sgid for a group that may run the file: only a member of it may give that (kernels before 6.0 do not look).
            New::File | New::Special(..) if mode & 0o2010 == 0o2010 => self.keeps_sgid(req, ino(parent)),
            _ => Ok(caller.privileged),
        };
        let result = keeps.and_then(|keeps| {
            caller.privileged = keeps;
            self.volume.create(ino(parent), name.as_bytes(), new, mode, umask, &caller)
        });
        self.reply_entry(run, ino(parent), result, reply);
    }

    fn list_xattrs(&self, req: &fuser::Request, n: Ino) -> Result<Vec<u8>> {
        let mut list = Vec::new();
        for name in self.volume.list_xattrs(n)? {
            if req.uid() != 0 && name.starts_with(b"trusted.") {
                continue;
            }
            list.extend_from_slice(&name);
            list.push(0);
        }
        if list.len() > XATTR_LIST_MAX { Err(FsError::AttributeTooLarge) } else { Ok(list) }
    }

    /// Whether a caller belongs to an inode's group, or may keep the setgid bit for it anyway.
    fn keeps_sgid(&self, req: &fuser::Request, n: Ino) -> Result<bool> {
        if req.uid() == 0 {
            return Ok(true);
        }
        let gid = self.volume.attributes(n)?.gid;
        if req.gid() == gid {
            return Ok(true);
        }
        // The request carries one group only; the others stand in /proc.
        let status = fs::read_to_string(format!("/proc/{}/status", req.pid())).unwrap_or_default();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or("");
        Ok(groups.split_ascii_whitespace().any(|g| g.parse() == Ok(gid)))
    }
}

/// Capabilities of the kernel that are used where it has them.
const WANTED: [InitFlags; 14] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_HAS_IOCTL_DIR,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_NO_OPEN_SUPPORT,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
];

impl<V: Volume> Filesystem for Adapter<V> {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.kernel = config.capabilities();
        let writeback = self.options.writeback.then_some(InitFlags::FUSE_WRITEBACK_CACHE);
        for flag in WANTED.into_iter().chain(writeback) {
            if let Err(missing) = config.add_capabilities(flag) {
                log::info!("the kernel does not have {missing:?}");
            }
        }
        // What does not fit is replaced by the nearest value that does.
        let _ = config.set_max_write(REQUEST_MAX);
        let _ = config.set_max_readahead(REQUEST_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let run = self.begin(Request::Lookup);
        let result = match name.as_bytes() {
            // Only asked for by file handle: the inode itself may be gone, and then the handle is stale.
            b"." => {
                return match self.volume.retain(ino(parent)) {
                    Err(FsError::NotFound) => reply.error(Errno::ESTALE),
                    result => self.reply_entry(run, ino(parent), result, reply),
                };
            }
            b".." => self.volume.parent(ino(parent)).and_then(|n| self.volume.retain(n)),
            name => self.volume.lookup(ino(parent), name),
        };
        self.reply_entry(run, ino(parent), result, reply);
    }

    fn forget(&self, _: &fuser::Request, n: INodeNo, count: u64) {
        let mut run = self.begin(Request::Forget);
        let result = self.volume.release(ino(n), count);
        // Nobody waits for an answer.
        let _ = self.told(&mut run, ino(n), result);
    }

    fn getattr(&self, _: &fuser::Request, n: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let run = self.begin(Request::Getattr);
        let result = self.volume.attributes(ino(n));
        self.reply_attr(run, ino(n), result, reply);
    }

    fn setattr(
        &self,
        req: &fuser::Request,
        n: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let run = self.begin(Request::Setattr);
        let mut caller = self.caller(req);
        // The kernel has taken sgid out of the mode already where the caller may not set it.
        caller.privileged |= mode.is_some();
        let change = SetAttributes {
            mode: mode.map(|m| (m & 0o7777) as u16),
            uid,
            gid,
            size,
            atime: atime.map(|t| time_or_now(t, caller.now)),
            mtime: mtime.map(|t| time_or_now(t, caller.now)),
            ctime: ctime.map(time),
        };
        let result = self.volume.set_attributes(ino(n), &change, &caller);
        let may_be_cut = size.is_some() && result.is_err();
        self.reply_attr(run, ino(n), result, reply);
        if may_be_cut {
            // The size may have been set before the error, and the kernel believes the old one. It holds its pages until it has the answer.
            self.flusher.run(move |kernel| kernel.give_up(n, WHOLE));
        }
    }

    fn readlink(&self, _: &fuser::Request, n: INodeNo, reply: ReplyData) {
        let mut run = self.begin(Request::Readlink);
        let result = self.accessed(n).and_then(|()| self.volume.read_link(ino(n)));
        match self.told(&mut run, ino(n), result) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(e),
        }
    }

    fn mknod(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let run = self.begin(Request::Mknod);
        let new = match kind_of_mode(mode) {
            Some(Kind::File) => New::File,
            Some(kind @ (Kind::CharDevice | Kind::BlockDevice)) => New::Special(kind, rdev),
            Some(kind @ (Kind::Fifo | Kind::Socket)) => New::Special(kind, 0),
            _ => return reply.error(Errno::EINVAL),
        };
        self.create(run, req, parent, name, (new, mode, umask), reply);
    }

    fn mkdir(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let run = self.begin(Request::Mkdir);
        self.create(run, req, parent, name, (New::Directory, mode, umask), reply);
    }

    fn unlink(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let run = self.begin(Request::Unlink);
        let result = self.volume.unlink(ino(parent), name.as_bytes(), &self.caller(req));
        self.reply_empty(run, ino(parent), result, reply);
    }

    fn rmdir(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let run = self.begin(Request::Rmdir);
        let result = self.volume.rmdir(ino(parent), name.as_bytes(), &self.caller(req));
        self.reply_empty(run, ino(parent), result, reply);
    }

    fn symlink(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let run = self.begin(Request::Symlink);
        let new = New::Symlink(target.as_os_str().as_bytes());
        self.create(run, req, parent, name, (new, 0o777, 0), reply);
    }

    fn rename(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let run = self.begin(Request::Rename);
        let Some(mode) = rename_mode(flags) else { return reply.error(Errno::EINVAL) };
        let caller = self.caller(req);
        if !self.options.writeback {
            let names = (name.as_bytes(), new_name.as_bytes());
            let result = self.volume.rename(ino(parent), names.0, ino(new_parent), names.1, mode, &caller);
            return self.reply_empty(run, ino(parent), result, reply);
        }
        // A file that replaces another brings its contents with it.
        let source = match self.volume.lookup(ino(parent), name.as_bytes()) {
            Ok(source) => source,
            Err(e) => return self.reply_empty(run, ino(parent), Err(e), reply),
        };
        let (volume, counters, damage) = (self.volume.clone(), self.counters.clone(), self.damage.clone());
        let started = run.hand_over();
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.flusher.run(move |kernel| {
            kernel.give_up(inode_no(source.ino), WHOLE);
            let names = (name.as_bytes(), new_name.as_bytes());
            let result = volume.rename(ino(parent), names.0, ino(new_parent), names.1, mode, &caller);
            if let Err(e) = volume.release(source.ino, 1) {
                damage.meet(&*volume, &e, Request::Forget, source.ino);
            }
            counters.add(Request::Rename, started, result.is_err());
            match result {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(damage.refuse(&*volume, &e, Request::Rename, ino(parent))),
            }
        });
    }

    fn link(
        &self,
        req: &fuser::Request,
        n: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let run = self.begin(Request::Link);
        let result = self.volume.link(ino(n), ino(new_parent), new_name.as_bytes(), &self.caller(req));
        self.reply_entry(run, ino(n), result, reply);
    }

    fn open(&self, _: &fuser::Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.begin(Request::Open).ok();
        reply_open(self.kernel, InitFlags::FUSE_NO_OPEN_SUPPORT, reply);
    }

    fn opendir(&self, _: &fuser::Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.begin(Request::Open).ok();
        reply_open(self.kernel, InitFlags::FUSE_NO_OPENDIR_SUPPORT, reply);
    }

    fn flush(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.begin(Request::Other).ok();
        reply.error(Errno::ENOSYS);
    }

    fn create(&self, _: &fuser::Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        self.begin(Request::Other).ok();
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &fuser::Request,
        n: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut run = self.begin(Request::Read);
        let mut reply = Some(reply);
        let accessed = if flags.0 & libc::O_NOATIME == 0 { self.accessed(n) } else { Ok(()) };
        let result = accessed.and_then(|()| {
            self.volume.read(ino(n), offset, size.min(REQUEST_MAX) as usize, |bytes| {
                if let Some(reply) = reply.take() {
                    reply.data(bytes);
                }
            })
        });
        if let (Err(e), Some(reply)) = (self.told(&mut run, ino(n), result), reply) {
            reply.error(e);
        }
    }

    fn write(
        &self,
        req: &fuser::Request,
        n: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut run = self.begin(Request::Write);
        let mut caller = self.caller(req);
        caller.privileged = !write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // What the kernel has collected was written earlier; it sets the time of that.
        let collected = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        caller.keeps_times = self.options.writeback && collected;
        let mut result = self.volume.write(ino(n), offset, data, &caller);
        // Of what it has collected the kernel never writes a rest again: it must meet the error now. And a part of what goes past its
        // cache is an I/O error to it.
        let at_once = collected || flags.0 & libc::O_DIRECT != 0;
        while let Ok(done) = result
            && done < data.len()
            && at_once
        {
            let rest = self.volume.write(ino(n), offset + done as u64, &data[done..], &caller);
            result = rest.map(|more| done + more);
        }
        match self.told(&mut run, ino(n), result) {
            Ok(done) => reply.written(done as u32),
            Err(e) => reply.error(e),
        }
    }

    fn fsync(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(reply);
    }

    fn fsyncdir(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(reply);
    }

    fn readdir(&self, _: &fuser::Request, n: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut run = self.begin(Request::Readdir);
        let mut any = false;
        let mut each = |cookie: Cookie, entry, kind, name: &[u8]| {
            let full = reply.add(inode_no(entry), cookie.0, file_type(kind), OsStr::from_bytes(name));
            any |= !full;
            !full
        };
        let result = self.accessed(n).and_then(|()| self.volume.read_dir(ino(n), Cookie(offset), &mut each));
        // With entries before it, an error is met by the kernel behind them.
        match self.told(&mut run, ino(n), if any { Ok(()) } else { result }) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn readdirplus(
        &self,
        _: &fuser::Request,
        n: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut run = self.begin(Request::Readdirplus);
        let mut any = false;
        let mut each = |cookie: Cookie, a: &Attributes, name: &[u8]| {
            let name = OsStr::from_bytes(name);
            let valid = validity(a, &self.options);
            let full = reply.add(inode_no(a.ino), cookie.0, name, &valid, &self.file_attr(a), Generation(0));
            any |= !full;
            !full
        };
        let result = self
            .accessed(n)
            .and_then(|()| self.volume.read_dir_plus(ino(n), Cookie(offset), ENTRIES_PER_REPLY, &mut each));
        // Entries have been given references: the kernel must see them, and meets an error behind them.
        match self.told(&mut run, ino(n), if any { Ok(()) } else { result }) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn statfs(&self, _: &fuser::Request, _: INodeNo, reply: ReplyStatfs) {
        let run = self.begin(Request::Statfs);
        let usage = self.volume.usage();
        let block = BLOCK_SIZE as u32;
        let (files, files_free) = (usage.files, usage.files_free);
        reply.statfs(usage.blocks, usage.free, usage.available, files, files_free, block, 255, block);
        run.ok();
    }

    fn setxattr(
        &self,
        req: &fuser::Request,
        n: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let run = self.begin(Request::Setxattr);
        if let Err(refused) = check_xattr_name(name) {
            return reply.error(refused);
        }
        let how = match flags {
            0 => SetXattr::Any,
            libc::XATTR_CREATE => SetXattr::Create,
            libc::XATTR_REPLACE => SetXattr::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let mut caller = self.caller(req);
        let result = if name.as_bytes() == b"system.posix_acl_access" {
            self.keeps_sgid(req, ino(n)).map(|keeps| caller.privileged = keeps)
        } else {
            Ok(())
        };
        let result =
            result.and_then(|()| self.volume.set_xattr(ino(n), name.as_bytes(), value, how, &caller));
        self.reply_empty(run, ino(n), result, reply);
    }

    fn getxattr(&self, _: &fuser::Request, n: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let run = self.begin(Request::Getxattr);
        if let Err(refused) = check_xattr_name(name) {
            return reply.error(refused);
        }
        let result = self.volume.get_xattr(ino(n), name.as_bytes());
        self.reply_xattr(run, ino(n), result, size, reply);
    }

    fn listxattr(&self, req: &fuser::Request, n: INodeNo, size: u32, reply: ReplyXattr) {
        let run = self.begin(Request::Listxattr);
        let result = self.list_xattrs(req, ino(n));
        self.reply_xattr(run, ino(n), result, size, reply);
    }

    fn removexattr(&self, req: &fuser::Request, n: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let run = self.begin(Request::Removexattr);
        if let Err(refused) = check_xattr_name(name) {
            return reply.error(refused);
        }
        let result = self.volume.remove_xattr(ino(n), name.as_bytes(), &self.caller(req));
        self.reply_empty(run, ino(n), result, reply);
    }

    fn access(&self, _: &fuser::Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself.
        self.begin(Request::Other).ok();
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        req: &fuser::Request,
        n: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        command: u32,
        input: &[u8],
        output_size: u32,
        reply: ReplyIoctl,
    ) {
        let mut run = self.begin(Request::Ioctl);
        let allowed = req.uid() == 0 || req.uid() == self.options.owner;
        let result = match Control::decode(command, input) {
            Some(Control::Stats) => Ok(Control::pad(
                report(&*self.volume, &self.counters, &self.damage, &self.scrubber),
                output_size as usize,
            )),
            Some(_) if !allowed => return reply.error(Errno::EPERM),
            Some(Control::Scrub(rate)) => match self.scrubber.start(&self.volume, rate) {
                Ok(()) => Ok(Vec::new()),
                Err(e) => return reply.error(e.raw_os_error().map_or(Errno::EIO, Errno::from_i32)),
            },
            Some(Control::StopScrub) => {
                self.scrubber.stop();
                Ok(Vec::new())
            }
            Some(Control::Findings(first)) => {
                let size = output_size as usize;
                Ok(Control::pad(findings(&self.scrubber.progress(), first, size), size))
            }
            Some(Control::AccessTimes(mode)) => {
                self.volume.set_atime_mode(mode);
                Ok(Vec::new())
            }
            Some(Control::Grow(size)) => self.volume.grow(size).map(|()| Vec::new()),
            None => return reply.error(Errno::ENOTTY),
        };
        match self.told(&mut run, ino(n), result) {
            Ok(output) => reply.ioctl(0, &output),
            Err(e) => reply.error(e),
        }
    }

    fn fallocate(
        &self,
        req: &fuser::Request,
        n: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mut run = self.begin(Request::Fallocate);
        let Some(mode) = fallocate_mode(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let result = self.volume.fallocate(ino(n), offset, length, mode, &self.caller(req));
        match self.told(&mut run, ino(n), result) {
            Ok(()) => reply.ok(),
            // What was zeroed before the error is still in the kernel's cache: it drops that only after a success.
            Err(e) => self.flusher.run(move |kernel| {
                kernel.give_up(n, WHOLE);
                reply.error(e);
            }),
        }
    }

    fn lseek(
        &self,
        _: &fuser::Request,
        n: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let mut run = self.begin(Request::Lseek);
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let wanted = Wanted { n, offset, data };
        // With `writeback=on` the file may be longer than is known here.
        let collects = self.options.writeback;
        if !collects && let (found, None) = wanted.seek(&*self.volume) {
            return reply_offset(self.told(&mut run, ino(n), found), reply);
        }
        let (volume, counters, damage) = (self.volume.clone(), self.counters.clone(), self.damage.clone());
        let started = run.hand_over();
        self.flusher.run(move |kernel| {
            if collects {
                kernel.give_up(n, WHOLE);
            }
            let found = wanted.seek_surely(&*volume, kernel);
            counters.add(Request::Lseek, started, found.is_err());
            reply_offset(found.map_err(|e| damage.refuse(&*volume, &e, Request::Lseek, ino(n))), reply);
        });
    }

    fn copy_file_range(
        &self,
        req: &fuser::Request,
        from: INodeNo,
        _: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _: FileHandle,
        to_offset: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let mut run = self.begin(Request::CopyFileRange);
        // The reply has 32 bits. The kernel has written back both files.
        let len = len.min(u64::from(u32::MAX) & !(BLOCK_SIZE as u64 - 1));
        let result =
            self.volume.copy_range(ino(from), from_offset, ino(to), to_offset, len, &self.caller(req));
        match self.told(&mut run, ino(to), result) {
            Ok(copied) => reply.written(copied as u32),
            Err(e) => reply.error(e),
        }
    }
}
