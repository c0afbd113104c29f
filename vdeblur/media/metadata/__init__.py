"""What picture files hold beside the picture: EXIF, ICC, XMP, comments, and bytes behind it."""
