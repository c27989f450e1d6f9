//! `atoll-fs local status`.

use crate::cli::LocalStatusArgs;
use crate::exit::{Code, Failure, Outcome};
use crate::local::find;
use crate::status;

pub fn status(args: &LocalStatusArgs) -> Outcome {
    let (folder, running) = find(&args.mountpoint, args.data.as_deref())?;
    let Some(running) = running else {
        return Err(Failure::new(
            Code::NotFound,
            format_args!(
                "not running: the cluster in {} is down; start it with 'atoll-fs local up {}'",
                folder.path.display(),
                args.mountpoint.display()
            ),
        ));
    };
    status::show(folder.id, folder.key, false, &[running.metadata], args.output)
}
