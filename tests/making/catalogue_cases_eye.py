"""Folders in the published layouts of OCT, OCT angiography and fundus photographs: what must be found, by hand."""

from __future__ import annotations

from catalogue_trees import Case, excel, medmnist

CASES: dict[str, Case] = {
    "oct2017": Case(
        """
        OCT2017/train/NORMAL/NORMAL-1384-1.jpeg
        OCT2017/train/CNV/CNV-1384-2.jpeg
        OCT2017/test/DRUSEN/DRUSEN-228939-1.jpeg
        OCT2017/val/DME/DME-9583225-1.jpeg
        """,
        {
            "OCT2017/train/NORMAL/NORMAL-1384-1.jpeg": {"split": "train", "label": "NORMAL", "group": 1384},
            "OCT2017/train/CNV/CNV-1384-2.jpeg": {"split": "train", "label": "CNV", "group": 1384},
            "OCT2017/test/DRUSEN/DRUSEN-228939-1.jpeg": {"split": "test", "label": "DRUSEN", "group": 228939},
            "OCT2017/val/DME/DME-9583225-1.jpeg": {"split": "val", "label": "DME", "group": 9583225},
        },
    ),
    "octdl": Case(
        """
        OCTDL/AMD/amd_1047099_1.jpg
        OCTDL/AMD/amd_1047099_2.jpg
        OCTDL/NO/no_1049_1.jpg
        """,
        {
            "OCTDL/AMD/amd_1047099_1.jpg": {"label": "AMD", "group": 1},
            "OCTDL/AMD/amd_1047099_2.jpg": {"label": "AMD", "group": 1},
            "OCTDL/NO/no_1049_1.jpg": {"label": "NO", "group": 2},
        },
        {
            "OCTDL_labels.csv": "file_name,disease,subcategory,condition,patient_id,eye,sex,year,"
            "image_width,image_height\n"
            "amd_1047099_1,AMD,early,drusen,331,OD,F,1960,100,100\n"
            "amd_1047099_2,AMD,early,drusen,331,OD,F,1960,100,100\n"
            "no_1049_1,NO,normal,normal,332,OS,M,1970,100,100\n"
        },
    ),
    "olives": Case(
        """
        Prime_FULL/02-044/W0/OD/0.tif
        Prime_FULL/02-044/W0/OD/fundus_OD_W0.tif
        Prime_FULL/02-044/W52/OS/3.png
        TREX DME/GILA/0234GOD/V1/OD/12.tif
        """,
        {
            "Prime_FULL/02-044/W0/OD/0.tif": {"label": "DR", "group": 1},
            "Prime_FULL/02-044/W52/OS/3.png": {"label": "DR", "group": 1},
            "TREX DME/GILA/0234GOD/V1/OD/12.tif": {"label": "DME", "group": 2},
        },
    ),
    "retinal-oct-c8": Case(
        """
        RetinalOCT_Dataset/RetinalOCT_Dataset/train/AMD/amd_train_1001.jpg
        RetinalOCT_Dataset/RetinalOCT_Dataset/val/CSR/csr_val_1001.jpg
        RetinalOCT_Dataset/RetinalOCT_Dataset/test/DR/dr_test_1001.jpg
        """,
        {
            "RetinalOCT_Dataset/RetinalOCT_Dataset/train/AMD/amd_train_1001.jpg": {"split": "train", "label": "AMD"},
            "RetinalOCT_Dataset/RetinalOCT_Dataset/val/CSR/csr_val_1001.jpg": {"split": "val", "label": "CSR"},
            "RetinalOCT_Dataset/RetinalOCT_Dataset/test/DR/dr_test_1001.jpg": {"split": "test", "label": "DR"},
        },
    ),
    "octmnist": Case(
        "",
        {
            "octmnist_64.npz#train_images[0]": {"split": "train", "label": "drusen"},
            "octmnist_64.npz#val_images[0]": {"split": "val", "label": "normal"},
            "octmnist_64.npz#test_images[0]": {"split": "test", "label": "choroidal neovascularization"},
        },
        {"octmnist_64.npz": medmnist(64, 2, (1, 1, 1), [[2], [3], [0]])},
    ),
    "odir-5k": Case(
        """
        ODIR-5K/Training Images/0_left.jpg
        ODIR-5K/Training Images/0_right.jpg
        ODIR-5K/Testing Images/937_left.jpg
        preprocessed_images/0_left.jpg
        """,
        {
            "ODIR-5K/Training Images/0_left.jpg": {"split": "train", "group": 0, "labels": ["C", "O"]},
            "ODIR-5K/Training Images/0_right.jpg": {"split": "train", "group": 0, "labels": ["C", "O"]},
            "ODIR-5K/Testing Images/937_left.jpg": {"split": "test", "group": 937},
        },
        {
            "ODIR-5K/data.xlsx": excel(
                [
                    "ID",
                    "Patient Age",
                    "Patient Sex",
                    "Left-Fundus",
                    "Right-Fundus",
                    "N",
                    "D",
                    "G",
                    "C",
                    "A",
                    "H",
                    "M",
                    "O",
                ],
                [0, 69, "Female", "0_left.jpg", "0_right.jpg", 0, 0, 0, 1, 0, 0, 0, 1],
            )
        },
    ),
    "aptos2019": Case(
        """
        train_images/000c1434d8d7.png
        train_images/001639a390f0.png
        test_images/0005cfc8afb6.png
        """,
        {
            "train_images/000c1434d8d7.png": {"label": "Moderate"},
            "train_images/001639a390f0.png": {"label": "Proliferative DR"},
            "test_images/0005cfc8afb6.png": {},
        },
        {"train.csv": "id_code,diagnosis\n000c1434d8d7,2\n001639a390f0,4\n"},
    ),
    "eyepacs-dr": Case(
        """
        train/10_left.jpeg
        train/10_right.jpeg
        test/1_left.jpeg
        """,
        {
            "train/10_left.jpeg": {"split": "train", "label": "No DR", "group": 10},
            "train/10_right.jpeg": {"split": "train", "label": "Mild", "group": 10},
            "test/1_left.jpeg": {"split": "test", "label": "Severe", "group": 1},
        },
        {
            "trainLabels.csv": "image,level\n10_left,0\n10_right,1\n",
            "retinopathy_solution.csv": "image,level,Usage\n1_left,3,Private\n",
        },
    ),
    "hrf": Case(
        """
        images/01_dr.JPG
        images/01_g.jpg
        images/02_h.jpg
        manual1/01_dr.tif
        manual1/01_g.tif
        manual1/02_h.tif
        mask/01_dr_mask.tif
        mask/01_g_mask.tif
        mask/02_h_mask.tif
        """,
        {
            "images/01_dr.JPG": {"mask": "manual1/01_dr.tif", "mask_fov": "mask/01_dr_mask.tif", "group": 1},
            "images/01_g.jpg": {"mask": "manual1/01_g.tif", "mask_fov": "mask/01_g_mask.tif", "group": 2},
            "images/02_h.jpg": {"mask": "manual1/02_h.tif", "mask_fov": "mask/02_h_mask.tif", "group": 3},
        },
    ),
    "drive": Case(
        """
        DRIVE/training/images/21_training.tif
        DRIVE/training/1st_manual/21_manual1.gif
        DRIVE/training/mask/21_training_mask.gif
        DRIVE/test/images/01_test.tif
        DRIVE/test/mask/01_test_mask.gif
        DRIVE/test/2nd_manual/01_manual2.gif
        """,
        {
            "DRIVE/training/images/21_training.tif": {
                "split": "train",
                "group": 21,
                "mask": "DRIVE/training/1st_manual/21_manual1.gif",
                "mask_fov": "DRIVE/training/mask/21_training_mask.gif",
            },
            "DRIVE/test/images/01_test.tif": {
                "split": "test",
                "group": 1,
                "mask_fov": "DRIVE/test/mask/01_test_mask.gif",
                "mask_second_observer": "DRIVE/test/2nd_manual/01_manual2.gif",
            },
        },
    ),
    "chasedb1": Case(
        """
        CHASEDB1/Image_01L.jpg
        CHASEDB1/Image_01L_1stHO.png
        CHASEDB1/Image_01L_2ndHO.png
        CHASEDB1/Image_01R.jpg
        CHASEDB1/Image_01R_1stHO.png
        CHASEDB1/Image_11L.jpg
        """,
        {
            "CHASEDB1/Image_01L.jpg": {
                "split": "train",
                "group": 1,
                "mask": "CHASEDB1/Image_01L_1stHO.png",
                "mask_second_observer": "CHASEDB1/Image_01L_2ndHO.png",
            },
            "CHASEDB1/Image_01R.jpg": {"split": "train", "group": 1, "mask": "CHASEDB1/Image_01R_1stHO.png"},
            "CHASEDB1/Image_11L.jpg": {"split": "test", "group": 11},
        },
        problems=["1 of 3 images have no vessel mask"],
    ),
    "stare": Case(
        """
        stare-images/im0001.ppm.gz
        stare-images/im0002.ppm.gz
        labels-ah/im0001.ah.ppm.gz
        labels-vk/im0001.vk.ppm.gz
        """,
        {
            "stare-images/im0001.ppm.gz": {
                "group": 1,
                "mask": "labels-ah/im0001.ah.ppm.gz",
                "mask_second_observer": "labels-vk/im0001.vk.ppm.gz",
            },
            "stare-images/im0002.ppm.gz": {"group": 2},
        },
        problems=["1 of 2 images have no vessel mask"],
    ),
    "octa-500": Case(
        """
        OCTA_3mm/Projection Maps/OCTA(ILM_OPL)/10301.bmp
        OCTA_3mm/Projection Maps/OCT(FULL)/10301.bmp
        OCTA_6M/Projection Maps/OCTA(FULL)/10250.bmp
        OCTA_6M/Projection Maps/OCTA(FULL)/10300.bmp
        Label/GT_Artery/10301.bmp
        Label/GT_Artery/10250.bmp
        Label/GT_Artery/10300.bmp
        Label/GT_Vein/10301.bmp
        Label/GT_Vein/10250.bmp
        Label/GT_Vein/10300.bmp
        Label/GT_FAZ/10250.bmp
        """,
        {
            "OCTA_3mm/Projection Maps/OCTA(ILM_OPL)/10301.bmp": {
                "split": "train",
                "group": 10301,
                "mask": "Label/GT_Artery/10301.bmp",
                "mask_vein": "Label/GT_Vein/10301.bmp",
            },
            "OCTA_3mm/Projection Maps/OCT(FULL)/10301.bmp": {
                "split": "train",
                "group": 10301,
                "mask": "Label/GT_Artery/10301.bmp",
                "mask_vein": "Label/GT_Vein/10301.bmp",
            },
            "OCTA_6M/Projection Maps/OCTA(FULL)/10250.bmp": {
                "split": "val",
                "group": 10250,
                "mask": "Label/GT_Artery/10250.bmp",
                "mask_vein": "Label/GT_Vein/10250.bmp",
                "mask_faz": "Label/GT_FAZ/10250.bmp",
            },
            "OCTA_6M/Projection Maps/OCTA(FULL)/10300.bmp": {
                "split": "test",
                "group": 10300,
                "mask": "Label/GT_Artery/10300.bmp",
                "mask_vein": "Label/GT_Vein/10300.bmp",
            },
        },
    ),
}
