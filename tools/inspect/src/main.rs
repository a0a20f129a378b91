//! The command line of the inspection tool.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use btfs::storage::{FileStorage, OpenMode};
use btfs_inspect::image::Image;
use btfs_inspect::{Command, Report, run, sample};

const USAGE: &str = "\
usage: inspect-image FILE [COMMAND]

Prints structures of a btfs image and says what is wrong with them. Changes nothing.
  (none)        one line for each part, and the verdict
  superblock    both superblocks
  log           the log's records from the checkpoint on
  doublewrite   both halves of the doublewrite area
  page N        page N of the data area, byte by byte
  tree          the tree's pages, level by level
  bitmap G      the blocks in use of group G
  dump          all structures byte by byte (small images)
  sample        makes FILE, a small image that is always the same, and dumps it
Exit status: 0 if all that was looked at is in order, 1 if not, 2 for wrong usage, 3 if the image cannot be opened.";

enum Request {
    Inspect(Command),
    Sample,
}

fn parse(arguments: &[String]) -> Option<Request> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Some(Request::Inspect(match words[..] {
        [] => Command::Summary,
        ["superblock"] => Command::Superblock,
        ["log"] => Command::Log,
        ["doublewrite"] => Command::Doublewrite,
        ["page", number] => Command::Page(number.parse().ok()?),
        ["tree"] => Command::Tree,
        ["bitmap", group] => Command::Bitmap(group.parse().ok()?),
        ["dump"] => Command::Dump,
        ["sample"] => return Some(Request::Sample),
        _ => return None,
    }))
}

fn inspect(path: &Path, command: Command) -> Result<Report, String> {
    let storage = FileStorage::open(path, OpenMode::ReadOnly).map_err(|e| e.to_string())?;
    let image = Image::new(Box::new(storage)).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(run(&image, command))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((path, rest)) = arguments.split_first().filter(|(path, _)| !path.starts_with('-')) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let path = Path::new(path);
    let command = match parse(rest) {
        Some(Request::Inspect(command)) => command,
        Some(Request::Sample) => {
            if let Err(error) = sample::write(path) {
                eprintln!("{error}");
                return ExitCode::from(3);
            }
            Command::Dump
        }
        None => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match inspect(path, command) {
        Ok(report) => {
            // A reader that has seen enough is no error.
            let _ = std::io::stdout().write_all(report.text.as_bytes());
            if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(3)
        }
    }
}
